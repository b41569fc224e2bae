"""Options of `cahqp init`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cahqp.errors import ConfigError

Preset = Literal["cpu", "gpu", "paper"]


@dataclass(frozen=True, kw_only=True)
class InitOptions:
    """Write a plan and its configs for your own cameras.

    Classes are read from the labels, sizes from the images. Each guess has a comment. Paths are written as given: run
    the plan in the folder in which you ran this command.

    Attributes:
        folder: Folder for `plan.yaml` and `configs/`, such as `my`. Existing plans are never overwritten.
        source: COCO files of labelled frames, for training.
        val: COCO files of labelled frames of other recordings, for measuring.
        target: Folders, videos or COCO files of the new conditions. Labels are not read.
        test: COCO files of labelled frames of the new conditions, which only the evaluation reads.
        preset: Size of the models and of the training: `cpu` for small models, `gpu` for DINO-R50 and RT-DETR-R18,
            `paper` for DINO-R101 with all terms of CA-HQP.
        teacher: Published checkpoint to start from, dino-r50 or dino-r101, or a file. Default: random weights.
        student: Published checkpoint to start from, such as rtdetr-r18, or a file. Default: random weights.
        frame_interval: Seconds between the frames taken from a video.
        smoke: Write a plan that runs all stages on a few frames, within a minute. Its models are useless.
    """

    folder: Path
    source: list[Path]
    val: list[Path]
    target: list[Path]
    test: list[Path] = field(default_factory=list)
    preset: Preset = "cpu"
    teacher: str | None = None
    student: str | None = None
    frame_interval: float = 1.0
    smoke: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"--{name} {path} is not a COCO file (.json). Labels of YOLO, CVAT and Label Studio: `cahqp reformat`."
            for name in ("source", "val", "test")
            for path in getattr(self, name)
            if path.suffix.lower() != ".json"
        ]
        if not self.frame_interval > 0:
            problems.append(f"--frame-interval must be above 0 seconds, got {self.frame_interval}.")
        if problems:
            raise ConfigError("\n".join(problems))
