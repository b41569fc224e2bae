"""Options of `cahqp report`, `cahqp quality` and `cahqp inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cahqp.coco.naming_options import NamingOptions


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `cahqp report`.

    Attributes:
        run: The cycle's directory.
        output: New directory for `report.html` and its manifest, as a stage of the cycle. By default `report.html` in
            `run` is replaced.
        plan: The cycle's plan, for the command that adds comparisons. Default: the command in `cycle.json`.
    """

    run: Path
    output: Path | None = None
    plan: Path | None = None


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """Options of `cahqp quality`.

    Attributes:
        labels: Directory of `cahqp relabel`, or a COCO file of labels.
        output: Directory for `quality.json` and `quality.html`; never overwritten.
        source: COCO file of the labelled source, to compare the class frequencies.
        ground_truth: COCO file with ground truth for the same images, matched by name. Adds precision, recall, F1 and
            AP50 per class, types of errors, and the share of true objects that train as background.
        calibration: File of `cahqp calibrate` that the labels were made with. Adds an estimate of calibration drift
            without ground truth.
        pictures: Number of frames to show, the most doubtful first. They may contain faces and licence plates.
    """

    labels: Path
    output: Path
    source: Path | None = None
    ground_truth: Path | None = None
    calibration: Path | None = None
    pictures: int = 0


@dataclass(frozen=True, kw_only=True)
class InspectOptions(NamingOptions):
    """Describe data sets: counts per class and camera, box sizes, brightness by hour, copies across splits, pictures.

    Attributes:
        data: COCO files and folders of images, as PATH or NAME=PATH. Nearly equal images in two of them are listed,
            also copies that were saved again or resized.
        output: New directory for `inspect.json` and `inspect.html`.
        pictures: Number of images of each data set to show. They may contain faces and licence plates.
    """

    data: list[str]
    output: Path
    pictures: int = 12
