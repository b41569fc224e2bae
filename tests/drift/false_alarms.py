"""Prints docs/rounds.md's table of false alarms: `python tests/drift/false_alarms.py`."""

import itertools
import runpy
from pathlib import Path

import numpy as np

from cahqp.drift.command import judge
from cahqp.drift.options import DriftSettings

stream = runpy.run_path(str(Path(__file__).with_name("signal_streams.py")))["stream"]
SETTINGS = DriftSettings(permutations=199)
CORRELATIONS, REFERENCES, SEEDS, WINDOWS = (0.8, 0.95, 0.98, 0.99), (3, 5, 10, 20), 10, 100


def false_alarms(correlation, reference):
    """Return the share of windows that are over together with the next, where nothing drifts."""
    usual, alarms = reference * SETTINGS.window, []
    for seed in range(SEEDS):
        frames = stream(usual + WINDOWS * SETTINGS.window, seed=seed * 7 + 1, correlation=correlation)
        known, seen = frames.take(np.arange(usual)), frames.take(np.arange(usual, len(frames)))
        windows = judge({"usual": known}, [seen], SETTINGS)["cameras"]["north"]["windows"]
        alarms += [first["over"] and second["over"] for first, second in itertools.pairwise(windows)]
    return sum(alarms) / (SEEDS * WINDOWS)


if __name__ == "__main__":
    for correlation in CORRELATIONS:
        shares = " | ".join(f"{false_alarms(correlation, reference):.1%}" for reference in REFERENCES)
        print(f"| {correlation} | {shares} |".replace("%", " %"))
