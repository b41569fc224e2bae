"""Options of `cahqp benchmark relabel` and `cahqp benchmark store`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cahqp.errors import check_numbers, option


@dataclass(frozen=True, kw_only=True)
class RelabelBenchmarkOptions:
    """Time `cahqp relabel` beside reading, resizing and the teacher's forward pass, on the CPU.

    Attributes:
        weights: Model file of the teacher.
        frames: Folder, video or COCO file, whose labels are not read.
        output: Folder for `relabel.json`.
        ignore_share: Option of `cahqp relabel`.
        stationary_weight: Option of `cahqp relabel`.
        temporal: Option of `cahqp relabel`.
        batch_size: Number of frames in a batch.
        rounds: Number of timed runs of each, in alternation, after one run for warm-up.
    """

    weights: Path
    frames: Path
    output: Path
    ignore_share: float = 0.6
    stationary_weight: float = 0.5
    temporal: bool = True
    batch_size: int = 8
    rounds: int = 5

    def __post_init__(self) -> None:
        """Check the ranges."""
        shares = {"--ignore-share": self.ignore_share, "--stationary-weight": self.stationary_weight}
        check_numbers(shares, {"--batch-size": self.batch_size, "--rounds": self.rounds})


@dataclass(frozen=True, kw_only=True)
class StoreBenchmarkOptions:
    """Time training with a soft-label store, and with the teacher in every step.

    The possible gain is E (t_T + t_S) / (M t_T + E t_S) for E epochs, M views, and the seconds t_T and t_S that the
    teacher and a training step of the student take for one view.

    Attributes:
        fit_config: YAML file of a student's training.
        teacher: Model file of the teacher. A YAML file of a training gives an untrained teacher.
        frames: Folder of images or COCO file, whose labels are not read.
        output: Folder for `store.md` and `store.json`.
        batch_size: Number of views in a batch.
        images: Number of frames, from the first one on.
        epochs: Epochs of whole runs with and without a store. With 0, only single steps are timed.
        views: Number of views of each frame in the store.
        rounds: Number of timed runs of each, in alternation; the median is reported.
        seed: Seed of weights and views.
    """

    fit_config: Path
    teacher: Path
    frames: Path
    output: Path
    batch_size: int = 4
    images: int = 16
    epochs: int = 0
    views: int = 4
    rounds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        names = ("batch_size", "images", "views", "rounds")
        check_numbers({}, {option(name): getattr(self, name) for name in names})
