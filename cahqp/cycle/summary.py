"""Summary at the end of a cycle."""

from __future__ import annotations

from pathlib import Path

from cahqp import files
from cahqp.cycle.stages import TEST
from cahqp.runs.evidence import read_metrics, read_verdict

NAMES = {
    "teacher-source": "teacher, source only",
    "teacher-adapted": "teacher, adapted",
    "teacher-mean-teacher": "teacher, mean teacher alone",
    "teacher-ca-hqp": "teacher, CA-HQP",
    "teacher-oracle": "teacher, oracle (target labels)",
    "student-old": "student, before",
    "student-new": "student, retrained",
}
"""Labels of the models in tables, in their order."""


def lines(root: Path) -> list[str]:
    """Return the table of a finished cycle, the decision, and the path of the report."""
    models = read_metrics(root / "evaluate" / "metrics.json").models
    names = sorted(models, key=order)
    frames = list(dict.fromkeys(frame for name in names for frame in models[name]))
    frames.sort(key=lambda name: not name.startswith(TEST))
    width = max(len(label(name)) for name in names)
    rows = [(label(m), [_percent(models[m][f].ap50 if f in models[m] else None) for f in frames]) for m in names]
    table = [("AP50 in %", [name.replace("-", " ") for name in frames]), *rows]
    return [
        *(name.ljust(width) + "".join(f"{cell:>16}" for cell in cells) for name, cells in table),
        "",
        read_verdict(root / "published" / "decision.json").reason,
        f"Published: {root / 'published' / 'model.safetensors'}",
        f"Report:    {root / 'report' / 'report.html'}",
    ]


def round_lines(root: Path) -> list[str]:
    """Return the table of a plan of rounds: AP50 of the running student by domain, after each round."""
    rows: list[tuple[str, list[str]]] = []
    paths = root.glob("round-*/**/evaluate/metrics.json")
    for path in sorted(paths, key=lambda path: files.natural_key(path.as_posix())):
        models = read_metrics(path).models
        decision = path.parents[1] / "published" / "decision.json"
        published = read_verdict(decision).published if decision.is_file() else None
        sets = models["student-new" if published else "student-old"]
        if not rows:
            rows.append(("AP50 in % of the running student", list(sets)))
            rows.append(("at the start", [_percent(values.ap50) for values in models["student-old"].values()]))
        outcome = {True: "published", False: "kept", None: "not decided"}[published]
        name = path.parents[1].relative_to(root).as_posix()
        rows.append((f"{name}, {outcome}", [_percent(values.ap50) for values in sets.values()]))
    table = [name.ljust(36) + "".join(f"{cell[:12]:>13}" for cell in cells) for name, cells in rows]
    return [*(table or ["No round has been measured yet."]), "", f"Report: {root / 'report.html'}"]


def label(model: str) -> str:
    """Return the label of a model in tables."""
    return NAMES.get(model, model)


def order(model: str) -> int:
    """Return the position of a model in tables."""
    return list(NAMES).index(model) if model in NAMES else len(NAMES)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
