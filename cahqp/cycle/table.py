"""The few lines that a cycle ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cahqp import files
from cahqp.cycle.stages import TEST

NAMES = {
    "teacher-source": "teacher, source only",
    "teacher-adapted": "teacher, adapted (CA-HQP)",
    "teacher-mean-teacher": "teacher, mean teacher alone",
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


def duration(seconds: float) -> str:
    """Return a time in words, such as `1 h 02 min`, `3 min 20 s` or `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


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
