"""Options of `cahqp relabel` and `cahqp calibrate`. The `relabel:` section of a plan shares `LabelOptions`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cahqp.errors import ConfigError, check_numbers
from cahqp.labels.calibration.curves import Method as CalibrationMethod
from cahqp.labels.formats import Format
from cahqp.labels.fusion import Method as FusionMethod
from cahqp.labels.views import parse_views


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Rules by which detections become labels.

    Attributes:
        threshold: Lowest score of a label, 0..1. Default: the thresholds per class in the model file, or 0.3 if it has
            none.
        ignore_share: Share of the threshold, 0..1. A box that reaches this share but not the threshold becomes a region
            to ignore: neither object nor background in training. With 1 there are no such regions.
        temporal: Judge boxes by their tracks: reject flicker, fill gaps, vote on classes. Recordings without time
            stamps, or with frames too far apart, are labelled frame by frame; a message counts them.
        stationary_weight: Score multiplier, 0..1, for boxes at a position occupied in most other frames of the
            recording. Lamps and lit windows look like road users and never move. It does not apply to tracked boxes.
        weight_by_score: Weight boxes in training by their confidence.
        views: Additional views of each frame for test-time augmentation: flip, scale:S with S in 0.25..4, or tiles:CxR
            such as tiles:2x2.
    """

    threshold: float | None = None
    ignore_share: float = 1.0
    temporal: bool = False
    stationary_weight: float = 1.0
    weight_by_score: bool = False
    views: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: Options are out of range. The message has one line for each, which begins with `--name`.
        """
        shares = {name: getattr(self, name) for name in ("threshold", "ignore_share", "stationary_weight")}
        problems = [
            f"--{name} must lie in 0..1, got {value}."
            for name, value in shares.items()
            if value is not None and not 0 <= value <= 1
        ]
        try:
            parse_views(self.views)
        except ConfigError as error:
            problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))


@dataclass(frozen=True, kw_only=True)
class SoftStoreSettings:
    """Contents of a soft-label store.

    Attributes:
        views: Number of views of every frame. Each is a random crop, flip and change of colours.
        queries: Number of queries kept of a view, those with the highest class probabilities. Default 100; null keeps
            all of them.
        classes: Number of classes kept of a query, the most probable ones, beside the mean of the other classes.
            Default 3; null keeps all of them.
        precision: `packed` stores 16 bits for each number; `float32` is exact.
    """

    views: int = 4
    queries: int | None = 100
    classes: int | None = 3
    precision: Literal["packed", "float32"] = "packed"

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: Numbers are below 1. The message lists all of them.
        """
        counts = {"views": self.views, "queries": self.queries, "classes": self.classes}
        check_numbers(shares={}, counts={f"soft_store.{name}": value for name, value in counts.items()})


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """Teachers, and the frames that they see.

    Attributes:
        weights: Model file of the teacher.
        frames: Folders of images, videos or COCO files.
        output: New directory for the results. It is never overwritten.
        teachers: More model files. Their detections are fused with those of `weights`.
        predictions: COCO files with scores, from other detectors. Their boxes are fused with those of `weights`.
        fuse: Method that joins the boxes of several views and teachers: `nms`, `soft-nms`, or `wbf` (weighted box
            fusion).
        nms_iou: IoU above which the box with the lower score is dropped, whatever the classes.
        batch_size: Number of frames in a batch.
        workers: Number of processes that load images; 0 loads them in the main process.
        seed: Seed that the manifest records.
    """

    weights: Path
    frames: list[Path]
    output: Path
    teachers: list[Path] = field(default_factory=list)
    predictions: list[Path] = field(default_factory=list)
    fuse: FusionMethod = "wbf"
    nms_iou: float = 0.7
    batch_size: int = 8
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: Options are out of range. The message lists all of them.
        """
        check_numbers({"--nms_iou": self.nms_iou}, {"--batch_size": self.batch_size})

    @property
    def input_files(self) -> dict[str, Path]:
        """Files and folders that the result depends on, by role."""
        files = {"weights": self.weights}
        for role in ("frames", "teachers", "predictions"):
            files |= {f"{role}.{number}": path for number, path in enumerate(getattr(self, role))}
        return files


@dataclass(frozen=True, kw_only=True)
class RelabelOptions(LabelOptions, TeacherOptions):
    """Label frames with a teacher, as COCO: labels in `labels.json`, dropped boxes with reasons in `rejected.json`.

    If interrupted, rerun the same command to resume; the files are then the same to the byte.

    Attributes:
        frames: Folders of images, videos or COCO files, whose labels are not read.
        calibration: File or directory that `cahqp calibrate` wrote. Scores become calibrated probabilities.
        target_precision: Precision, 0..1, on the frames of the calibration that the thresholds per class must reach.
        top_share: Share, 0..1, of the boxes of each class that become labels.
        dynamic: Lower the threshold of a class by as much as its mean score is lower than on the frames of the
            calibration.
        format: Additional formats to write: yolo, cvat, label-studio. COCO is always written.
        soft: Also store the teacher's soft labels for several views of every frame, for distillation.
        soft_store: Contents of that store.
        max_boxes: Largest number of labels of a frame.
        frame_interval: Seconds between the frames taken from a video. Default: all frames.
        max_invalid_share: Largest share of broken images, 0..1; more of them stop the run.
        devices: Number of devices that share the frames.
        accelerator: Kind of device.
        precision: Precision of the computation.
    """

    calibration: Path | None = None
    target_precision: float | None = None
    top_share: float | None = None
    dynamic: bool = False
    format: list[Format] = field(default_factory=list)
    soft: bool = False
    soft_store: SoftStoreSettings = field(default_factory=SoftStoreSettings)
    max_boxes: int = 100
    frame_interval: float | None = None
    max_invalid_share: float = 0.05
    devices: int = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: Options are out of range or exclude each other.
        """
        LabelOptions.__post_init__(self)
        TeacherOptions.__post_init__(self)
        shares = {name: getattr(self, name) for name in ("target_precision", "top_share", "max_invalid_share")}
        counts = {name: getattr(self, name) for name in ("max_boxes", "devices")}
        check_numbers({f"--{n}": v for n, v in shares.items()}, {f"--{n}": v for n, v in counts.items()})
        problems = list(self._conflicts())
        if problems:
            raise ConfigError("\n".join(problems))

    def _conflicts(self) -> Iterator[str]:
        rules = [f"--{n}" for n in ("threshold", "target_precision", "top_share") if getattr(self, n) is not None]
        if len(rules) > 1:
            yield f"{' and '.join(rules)} each set the lowest score of a label. Give one of them."
        for name in ("target_precision", "dynamic"):
            if getattr(self, name) and self.calibration is None:
                yield f"--{name} needs --calibration, a file that `cahqp calibrate` wrote."
        if self.stationary_weight < 1 and self.top_share is not None:
            yield "--top_share counts all boxes, and --stationary_weight lowers the scores of some. Give one of them."
        if self.dynamic and self.top_share is not None:
            yield "--dynamic adjusts thresholds, and --top_share replaces them. Give one of them."
        if self.soft and self.devices > 1:
            yield f"--soft runs on one device, got --devices={self.devices}. Give --devices=1."

    @property
    def input_files(self) -> dict[str, Path]:
        """Files and folders that the result depends on, by role."""
        return super().input_files | ({"calibration": self.calibration} if self.calibration else {})


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(TeacherOptions):
    """Fit score calibration on labelled source frames that the teacher was not trained on.

    Writes `calibration.json` and `calibration.html`. Give the same teachers, views and fusion as to `cahqp relabel`.

    Attributes:
        frames: One COCO file with ground truth.
        views: Additional views, as for `cahqp relabel`: flip, scale:S, tiles:CxR.
        method: Form of the curves: `isotonic`, `platt` or `temperature`.
        uncalibrated: Classes that the frames lack. They use the curve of all classes together.
        device: Device of the computation.
    """

    views: list[str] = field(default_factory=list)
    method: CalibrationMethod = "isotonic"
    uncalibrated: list[str] = field(default_factory=list)
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: Options are out of range, or there is not exactly one file of frames.
        """
        super().__post_init__()
        parse_views(self.views)
        if len(self.frames) != 1:
            message = f"calibrate takes one COCO file after --frames, got {len(self.frames)}. Join them first."
            raise ConfigError(message)
