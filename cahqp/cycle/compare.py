"""Several cycles of one plan, each from another seed, as one table."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cahqp.cycle.summary import NAMES
from cahqp.errors import ConfigError
from cahqp.files import read_json

# What is asked of a cycle: is the adapted teacher ahead of its start, and the retrained student of its own?
PAIRS = (
    ("teacher-adapted", "teacher-source"),
    ("teacher-mean-teacher", "teacher-source"),
    ("teacher-ca-hqp", "teacher-source"),
    ("teacher-oracle", "teacher-source"),
    ("student-new", "student-old"),
)


def compare(runs: list[Path]) -> None:
    """Print AP50 of every model over several finished cycles: each run, mean and standard deviation.

    Args:
        runs: Directories of finished cycles of the same plan, one per seed.
    """
    print("\n".join(lines(runs)))


def lines(runs: list[Path]) -> list[str]:
    """Return the table's lines.

    Raises:
        ConfigError: There are fewer than two runs, or they share no model and frames.
    """
    if len(runs) < 2:
        message = "Give --runs the directories of two or more finished cycles."
        raise ConfigError(message)
    found = [_figures(run) for run in runs]
    shared = sorted({key for key in found[0] if all(key in figures for figures in found)}, key=_place)
    if not shared:
        message = "The runs measured no model on the same frames: compare cycles of one plan."
        raise ConfigError(message)
    rows = [(f"{NAMES.get(m, m)}, {frames}", [f[m, frames] for f in found]) for m, frames in shared]
    for model, start in PAIRS:
        for frames in [frames for name, frames in shared if name == model and (start, frames) in shared]:
            gains = [f[model, frames] - f[start, frames] for f in found]
            rows.append((f"gain of {NAMES.get(model, model)}, {frames}", gains))
    width = max(len(name) for name, _ in rows)
    table = [f"{'AP50 in %'.ljust(width)}{'mean':>8}{'sd':>7}   each run"] + [_row(*row, width) for row in rows]
    others = {model for figures in found for model, frames in figures if (model, frames) not in shared}
    left_out = ", ".join(NAMES.get(model, model) for model in sorted(others))
    return table + ([f"Not in all runs, and left out: {left_out}."] if others else [])


def _place(key: tuple[str, str]) -> tuple[str, int]:
    """Order by frames, then as a cycle goes."""
    return key[1], list(NAMES).index(key[0]) if key[0] in NAMES else len(NAMES)


def _figures(run: Path) -> dict[tuple[str, str], float]:
    models: dict[str, Any] = read_json(run / "evaluate" / "metrics.json")["models"]
    return {(m, frames): 100 * (v["ap50"] or 0.0) for m, sets in models.items() for frames, v in sets.items()}


def _row(name: str, values: list[float], width: int) -> str:
    each = " ".join(f"{value:6.1f}" for value in values)
    return f"{name.ljust(width)}{mean(values):8.1f}{stdev(values):7.1f}  {each}"
