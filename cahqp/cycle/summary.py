"""The few lines that a cycle ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cahqp import files
from cahqp.cycle.stages import TEST

NAMES = {
    "teacher-source": "teacher, source only",
    "teacher-adapted": "teacher, adapted",
    "teacher-mean-teacher": "teacher, mean teacher alone",
    "teacher-ca-hqp": "teacher, CA-HQP",
    "teacher-oracle": "teacher, oracle (target labels)",
    "student-old": "student, before",
    "student-new": "student, retrained",
}


def lines(root: Path) -> list[str]:
    """Return the table of a finished cycle, what was published, and where the report is."""
    models = files.read_json(root / "evaluate" / "metrics.json")["models"]
    decision = files.read_json(root / "published" / "decision.json")
    return [
        *_table(models),
        "",
        decision["reason"],
        f"Published: {root / 'published' / 'model.safetensors'}",
        f"Report:    {root / 'report' / 'report.html'}",
    ]


def round_lines(root: Path) -> list[str]:
    """Return the table of a plan of rounds: AP50 of the running student by domain, after each round."""
    told: list[str] = []
    for evaluated in sorted(
        root.glob("round-*/**/evaluate/metrics.json"), key=lambda path: files.natural_key(path.as_posix())
    ):
        models = files.read_json(evaluated)["models"]
        decision = evaluated.parents[1] / "published" / "decision.json"
        published = files.read_json(decision)["published"] if decision.is_file() else None
        figures = models["student-new" if published else "student-old"]
        if not told:
            told.append(_round_row("AP50 in % of the running student", {name: name for name in figures}))
            told.append(_round_row("at the start", {n: _percent(f["ap50"]) for n, f in models["student-old"].items()}))
        name = evaluated.parents[1].relative_to(root).as_posix()
        how = {True: "published", False: "kept", None: "not decided"}[published]
        told.append(_round_row(f"{name}, {how}", {n: _percent(f["ap50"]) for n, f in figures.items()}))
    told = told or ["No round has been measured yet."]
    return [*told, "", f"Report: {root / 'report.html'}"]


def _round_row(name: str, cells: dict[str, str]) -> str:
    return name.ljust(36) + "".join(f"{cell[:12]:>13}" for cell in cells.values())


def _table(models: dict[str, dict[str, Any]]) -> list[str]:
    # JSON files are sorted by name; a reader wants before above after.
    models = dict(sorted(models.items(), key=lambda item: list(NAMES).index(item[0]) if item[0] in NAMES else 99))
    frames = list(dict.fromkeys(name for figures in models.values() for name in figures))
    frames.sort(key=lambda name: not name.startswith(TEST))
    width = max(len(NAMES.get(name, name)) for name in models)
    header = "AP50 in %".ljust(width) + "".join(f"{name.replace('-', ' '):>16}" for name in frames)
    rows = [
        NAMES.get(model, model).ljust(width)
        + "".join(f"{_percent(figures.get(name, {}).get('ap50')):>16}" for name in frames)
        for model, figures in models.items()
    ]
    return [header, *rows]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
