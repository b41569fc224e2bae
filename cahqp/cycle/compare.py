"""`cahqp cycle compare`: several cycles of one plan with different seeds, as one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from cahqp.cycle.summary import label, order
from cahqp.errors import ConfigError
from cahqp.runs.evidence import read_metrics

PAIRS = (
    ("teacher-adapted", "teacher-source"),
    ("teacher-mean-teacher", "teacher-source"),
    ("teacher-ca-hqp", "teacher-source"),
    ("teacher-oracle", "teacher-source"),
    ("student-new", "student-old"),
)
"""Models, each with the model that its gain is computed against."""


@dataclass(frozen=True, kw_only=True)
class CycleCompareOptions:
    """Print the mean and standard deviation of each model's AP50 over several finished cycles.

    Attributes:
        runs: Directories of finished cycles of the same plan, one per seed.
    """

    runs: list[Path]


def compare(options: CycleCompareOptions) -> None:
    """Run `cahqp cycle compare`."""
    print("\n".join(lines(options.runs)))


def lines(runs: list[Path]) -> list[str]:
    """Return the lines of the table.

    Raises:
        ConfigError: There are fewer than two runs, or they have no model and frames in common.
    """
    if len(runs) < 2:
        message = f"--runs needs the directories of two or more finished cycles, got {len(runs)}."
        raise ConfigError(message)
    results = [_ap50(run) for run in runs]
    shared = [key for key in results[0] if all(key in values for values in results)]
    shared.sort(key=lambda key: (key[1], order(key[0])))
    if not shared:
        message = "The runs measured no model on the same frames. Compare cycles of one plan."
        raise ConfigError(message)
    rows = [(f"{label(m)}, {frames}", [values[m, frames] for values in results]) for m, frames in shared]
    for model, start in PAIRS:
        for frames in [frames for name, frames in shared if name == model and (start, frames) in shared]:
            gains = [values[model, frames] - values[start, frames] for values in results]
            rows.append((f"gain of {label(model)}, {frames}", gains))
    width = max(len(name) for name, _ in rows)
    table = [f"{'AP50 in %'.ljust(width)}{'mean':>8}{'sd':>7}   each run"]
    for name, values in rows:
        each = " ".join(f"{value:6.1f}" for value in values)
        table.append(f"{name.ljust(width)}{mean(values):8.1f}{stdev(values):7.1f}  {each}")
    omitted = {model for values in results for model, frames in values if (model, frames) not in shared}
    return table + ([f"Not in all runs, and omitted: {', '.join(map(label, sorted(omitted)))}."] if omitted else [])


def _ap50(run: Path) -> dict[tuple[str, str], float]:
    models = read_metrics(run / "evaluate" / "metrics.json").models
    return {(m, frames): 100 * (v.ap50 or 0.0) for m, sets in models.items() for frames, v in sets.items()}
