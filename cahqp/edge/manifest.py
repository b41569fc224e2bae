"""Types of `package.json`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from cahqp.records import Name, Record, Sha256, Share

_MAX_PIXELS = 1 << 26  # of a batch: 800 MB as float32
_MAX_SUPPRESSED = 3_000  # suppression compares all pairs: 70 MB per matrix

_Side = Annotated[int, Field(ge=1, le=1 << 15)]
_Colour = Annotated[list[Annotated[float, Field(ge=-1e6, le=1e6)]], Field(min_length=3, max_length=3)]
_Deviation = Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=3, max_length=3)]


class InputRule(Record):
    """Preprocessing of the frames.

    Attributes:
        batch: Fixed batch size.
        height: Height of the model's input in pixels.
        width: Width of the model's input in pixels.
        mean: Mean of each channel, subtracted after the division by 255.
        std: Divisor of each channel.
        short_side: Length in pixels of the shorter side if the aspect ratio is kept, else `None`.
        max_side: Largest length in pixels of the longer side, if limited.
    """

    batch: Annotated[int, Field(ge=1, le=4096)]
    height: _Side
    width: _Side
    mean: _Colour
    std: _Deviation
    short_side: _Side | None
    max_side: _Side | None

    @model_validator(mode="after")
    def _check_pixels(self) -> Self:
        if self.batch * self.height * self.width > _MAX_PIXELS:
            message = f"batch, height and width give more than {_MAX_PIXELS:,} pixels"
            raise ValueError(message)
        return self


class OutputRule(Record):
    """Decoding of the model's output.

    Attributes:
        max_detections: Number of query-class pairs to keep.
        nms_iou: IoU of non-maximum suppression; `None` without suppression.
    """

    max_detections: Annotated[int, Field(ge=1, le=10_000)]
    nms_iou: Share | None = None

    @model_validator(mode="after")
    def _check_suppression(self) -> Self:
        if self.nms_iou is not None and self.max_detections > _MAX_SUPPRESSED:
            message = f"with nms_iou, max_detections must be at most {_MAX_SUPPRESSED}"
            raise ValueError(message)
        return self


class PackageManifest(Record):
    """Content of `package.json`.

    Attributes:
        architecture: Class name of the detector.
        classes: Names of the classes in the order of the labels.
        input: Preprocessing.
        output: Decoding.
        thresholds: Operating threshold in 0..1 by class.
        precision: `float32` or `int8`.
        weights: Content hash of the model file.
        files: SHA-256 by file name.
    """

    architecture: Name
    classes: Annotated[list[Name], Field(min_length=1, max_length=10_000)]
    input: InputRule
    output: OutputRule
    thresholds: dict[str, Share]
    precision: Name
    weights: Name | None
    files: Annotated[dict[str, Sha256], Field(max_length=64)]

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        if len(set(self.classes)) < len(self.classes):
            message = "a class is named twice"
            raise ValueError(message)
        return self
