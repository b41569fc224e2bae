"""Options of `cahqp features` and `cahqp drift`. The `drift:` section of a plan shares `DriftSettings`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from cahqp.coco.naming_options import NamingOptions
from cahqp.errors import ConfigError, check_numbers

DRIFT, STEADY, FAULT, FEW = "drift", "steady", "fault", "too few frames"
"""Verdicts on a camera."""

KINDS = ("features", "scores", "plain", "view")
"""Kinds of signals; each is tested by itself."""


@dataclass(frozen=True, kw_only=True)
class FeaturesOptions(NamingOptions):
    """Write features, scores and plain signals of frames to `features.npz`, for `cahqp drift`, `sample` and `replay`.

    Attributes:
        weights: Model file of a student or a teacher. Signals of different models cannot be compared.
        frames: Folders of images, videos or COCO files. Labels are not read.
        output: New directory for the signals.
        frame_interval: Seconds between the frames taken from a video. Default: all frames.
        batch_size: Frames in a batch.
        workers: Processes that load images; 0 loads in the main process.
        max_invalid_share: Largest allowed share of unreadable images, 0..1. A failing camera sends such images.
        device: Device of the model, such as `cpu` or `cuda`.
    """

    weights: Path
    frames: list[Path]
    output: Path
    frame_interval: float | None = None
    batch_size: int = 8
    workers: int = 0
    max_invalid_share: float = 1.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_numbers({"--max-invalid-share": self.max_invalid_share}, {"--batch-size": self.batch_size})


@dataclass(frozen=True, kw_only=True)
class DriftSettings:
    """Settings of the drift test.

    Attributes:
        window: Frames in a window.
        block: Consecutive frames that the permutation test keeps together. A window has at least three blocks.
        alpha: Significance level of the drift test of one time window, 0..1: probability of a false alarm by any
            signal.
        margin: Extra distance by which a window must exceed the farthest of the reference's own windows, as a share of
            the difference between their largest and median distance.
        confirm: Consecutive windows that must exceed the limit before a camera counts as drifted.
        permutations: Number of permutations of the test.
    """

    window: int = 24
    block: int = 4
    alpha: float = 0.02
    margin: float = 1.0
    confirm: int = 2
    permutations: int = 499

    def __post_init__(self) -> None:
        problems = []
        if self.block < 1 or self.window < 3 * self.block:
            problems.append(f"--window must be at least three --block, got {self.window} and {self.block}.")
        if not 0 < self.alpha < 1:
            problems.append(f"--alpha must be between 0 and 1, got {self.alpha}.")
        elif (self.permutations + 1) * self.alpha < len(KINDS):
            lowest = math.ceil(len(KINDS) / self.alpha) - 1
            problems.append(
                f"--permutations must be {lowest} or more for --alpha {self.alpha}, got {self.permutations}."
            )
        if not self.margin >= 0:
            problems.append(f"--margin must be 0 or more, got {self.margin}.")
        if self.confirm < 1:
            problems.append(f"--confirm must be 1 or more, got {self.confirm}.")
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def min_frames(self) -> int:
        """Smallest number of readable frames in a reference, whose own windows are compared with one another."""
        return 3 * self.window


@dataclass(frozen=True, kw_only=True)
class DriftOptions(DriftSettings):
    """Report for each camera whether its frames drifted from all reference domains, are steady, or show a fault.

    Writes `drift.json`: per camera its windows, its verdict and the nearest reference domain, and groups of drifted
    cameras with similar changes, which one adaptation can serve.

    Attributes:
        reference: NAME=DIRECTORY of each reference domain, written by `cahqp features` with one model. A camera with at
            least three windows in a domain is compared with its own frames, other cameras with the frames of all
            cameras. A domain with fewer than three windows in all is left out, and reported.
        frames: Directories of `cahqp features` with the frames to test, each camera's in order of time.
        output: New directory for the result.
        seed: Seed of the permutations.
    """

    reference: list[str]
    frames: list[Path]
    output: Path
    seed: int = 0
