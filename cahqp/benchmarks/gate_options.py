"""Options of `cahqp benchmark gate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cahqp.errors import check_numbers


@dataclass(frozen=True, kw_only=True)
class GateBenchmarkOptions:
    """Measure how often the gate publishes simulated candidates of known quality.

    Attributes:
        output: New directory for `gate.md` and `gate.json`.
        decisions: Candidates per true difference.
        recordings: Recordings in each labelled set.
        frames: Frames in a recording.
        objects: Mean number of objects in a frame.
        sets: Labelled sets that a candidate is measured on.
        spread: Standard deviation between recordings of the candidate's gain in recall, 0..1.
        resamples: Draws of the gate's bootstrap.
        seed: Seed of all randomness.
    """

    output: Path
    decisions: int = 200
    recordings: int = 12
    frames: int = 60
    objects: float = 6.0
    sets: int = 1
    spread: float = 0.01
    resamples: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        names = ("decisions", "recordings", "frames", "sets", "resamples")
        check_numbers({"--spread": self.spread}, {f"--{name}": getattr(self, name) for name in names})
