"""Options of `cahqp relabel` and `cahqp calibrate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cahqp.coco.naming_options import NamingOptions
from cahqp.errors import ConfigError, check_numbers, option
from cahqp.labels.calibration.curves import Method as CalibrationMethod
from cahqp.labels.formats.options import Format
from cahqp.labels.fusion import Method as FusionMethod
from cahqp.labels.options import LabelOptions
from cahqp.labels.views import parse_views

_NOT_RECORDED = (
    "weights", "frames", "output", "teachers", "predictions", "prediction_images", "calibration", "seed",
    "workers", "max_invalid_share", "devices", "accelerator",
)  # fmt: skip
_REFINEMENTS = (
    "top_share", "ignore_share", "moving_ignore_share", "temporal", "stationary_weight", "weight_by_score", "views",
    "teachers", "predictions", "calibration", "target_precision", "dynamic",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SoftStoreSettings:
    """Contents of a soft-label store.

    Attributes:
        views: Number of views of every frame. Each is a random crop, flip and change of colours.
        queries: Number of queries kept of a view, those with the highest class probabilities. Default 100; null keeps
            all of them.
        classes: Number of classes, most probable first, whose scores are stored for each query; the other classes share
            one mean score. Default 3; null stores all classes.
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
class TeacherOptions(NamingOptions):
    """Teachers, and the frames that they see.

    Attributes:
        weights: Model file of the teacher.
        frames: Folders of images, videos or COCO files.
        output: New directory for the results. It is never overwritten.
        teachers: More model files. Their detections are fused with those of `weights`.
        predictions: COCO files with scores, or lists of results, from other detectors. Their boxes are fused with those
            of `weights`.
        prediction_images: COCO file whose image and category ids the lists of results use.
        fuse: Method that joins the boxes of several views and teachers: `nms`, `soft-nms`, or `wbf` (weighted box
            fusion).
        batch_size: Number of frames in a batch.
        workers: Number of processes that load images; 0 loads them in the main process.
        seed: Seed that the manifest records.
    """

    weights: Path
    frames: list[Path]
    output: Path
    teachers: list[Path] = field(default_factory=list)
    predictions: list[Path] = field(default_factory=list)
    prediction_images: Path | None = None
    fuse: FusionMethod = "wbf"
    batch_size: int = 8
    workers: int = 0
    seed: int = 0

    @property
    def input_files(self) -> dict[str, Path]:
        """Files and folders that the result depends on, by role."""
        files = {"weights": self.weights}
        for role in ("frames", "teachers", "predictions"):
            files |= {f"{role}.{number}": path for number, path in enumerate(getattr(self, role))}
        return files | ({"prediction_images": self.prediction_images} if self.prediction_images else {})


@dataclass(frozen=True, kw_only=True)
class RelabelOptions(LabelOptions, TeacherOptions):
    """Label frames with a teacher, as COCO: labels in `labels.json`, dropped boxes with reasons in `rejected.json`.

    If interrupted, rerun the same command to resume; the files are then the same to the byte.

    Attributes:
        frames: Folders of images, videos or COCO files, whose labels are not read.
        calibration: File or directory that `cahqp calibrate` wrote. Scores become calibrated probabilities.
        target_precision: Precision, 0..1, on the frames of the calibration that the thresholds per class must reach.
        dynamic: Lower the threshold of a class by as much as its mean score is lower than on the frames of the
            calibration.
        format: Additional formats to write: yolo, cvat, label-studio. COCO is always written.
        soft: Also store the teacher's soft labels for several views of every frame, for distillation.
        soft_store: Contents of that store.
        frame_interval: Seconds between the frames taken from a video. Default: all frames.
        max_invalid_share: Largest share of broken images, 0..1; more of them stop the run.
        devices: Number of devices that share the frames.
        accelerator: Kind of device.
        precision: Precision of the computation.
    """

    calibration: Path | None = None
    target_precision: float | None = None
    dynamic: bool = False
    format: list[Format] = field(default_factory=list)
    soft: bool = False
    soft_store: SoftStoreSettings = field(default_factory=SoftStoreSettings)
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
        super().__post_init__()
        shares = {"--target-precision": self.target_precision, "--max-invalid-share": self.max_invalid_share}
        check_numbers(shares, {"--batch-size": self.batch_size, "--devices": self.devices})

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        for name in ("target_precision", "dynamic"):
            if getattr(self, name) and self.calibration is None:
                yield f"{option(name)} needs --calibration, a file that `cahqp calibrate` wrote."
        if self.dynamic and self.top_share is not None:
            yield "--dynamic adjusts thresholds, and --top-share replaces them. Give one of them."
        if self.soft and self.devices > 1:
            yield f"--soft runs on one device, got --devices={self.devices}. Give --devices=1."

    @property
    def input_files(self) -> dict[str, Path]:
        """Files and folders that the result depends on, by role."""
        return super().input_files | ({"calibration": self.calibration} if self.calibration else {})

    @property
    def settings(self) -> dict[str, Any]:
        """Options that the result depends on besides files, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_RECORDED}

    @property
    def plain(self) -> bool:
        """Whether thresholds, suppression and `max_boxes` alone decide, on the detections of one teacher."""
        defaults = RelabelOptions(weights=self.weights, frames=self.frames, output=self.output)
        return all(getattr(self, name) == getattr(defaults, name) for name in _REFINEMENTS)


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(TeacherOptions):
    """Fit score calibration on labelled source frames that the teacher was not trained on.

    Writes `calibration.json` and `calibration.html`. Give the same teachers, views and fusion as to `cahqp relabel`.

    Attributes:
        frames: One COCO file with ground truth.
        views: Additional views, as for `cahqp relabel`: flip, scale:S, tiles:CxR.
        nms_iou: IoU above which the box with the lower score is dropped, whatever the classes.
        method: Form of the curves: `isotonic`, `platt` or `temperature`.
        uncalibrated: Classes that the frames lack. They use the curve of all classes together.
        device: Device of the computation.
    """

    views: list[str] = field(default_factory=list)
    nms_iou: float = 0.7
    method: CalibrationMethod = "isotonic"
    uncalibrated: list[str] = field(default_factory=list)
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: Options are out of range, or there is not exactly one file of frames.
        """
        check_numbers({"--nms-iou": self.nms_iou}, {"--batch-size": self.batch_size})
        parse_views(self.views)
        if len(self.frames) != 1:
            message = f"calibrate takes one COCO file after --frames, got {len(self.frames)}. Join them first."
            raise ConfigError(message)
