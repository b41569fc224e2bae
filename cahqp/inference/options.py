"""Options of `cahqp evaluate` and `cahqp info`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cahqp.errors import MAX_RESAMPLES, check_numbers


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """Models, and labelled frames to measure them on.

    Attributes:
        weights: NAME=FILE of each model.
        frames: NAME=FILE of each COCO file with ground truth.
        output: New directory for `metrics.json`.
        batch_size: Frames per batch.
        seed: Seed in the manifest.
        max_invalid_share: Largest accepted share of unreadable images, 0..1.

    Raises:
        ConfigError: An option is out of range.
    """

    weights: list[str]
    frames: list[str]
    output: Path
    batch_size: int = 8
    seed: int = 0
    max_invalid_share: float = 0.05

    def __post_init__(self) -> None:
        check_numbers({"--max-invalid-share": self.max_invalid_share}, {"--batch-size": self.batch_size})


@dataclass(frozen=True, kw_only=True)
class BenchmarkMeasureOptions(MeasureOptions):
    """Options of `cahqp benchmark measure`.

    Attributes:
        min_objects: Smallest number of objects of a class in a file. Means leave out classes with fewer: two objects
            give an average precision of 0, 50 or 100 %.

    Raises:
        ConfigError: An option is out of range.
    """

    min_objects: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(shares={}, counts={"--min-objects": self.min_objects})


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(MeasureOptions):
    """Options of `cahqp evaluate`.

    Attributes:
        weights: FILE or NAME=FILE of each model. A model is compared with the first model whose name has the same part
            before the first dash.
        frames: FILE or NAME=FILE of each COCO file with ground truth.
        resamples: Number of bootstrap resamples.
        device: Device of the models, such as cpu or cuda:0.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: An option is out of range.
    """

    resamples: int = 1000
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers({}, {"--resamples": self.resamples}, MAX_RESAMPLES)


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Options of `cahqp info`.

    Attributes:
        file: The model file.
    """

    file: Path
