"""What `cahqp relabel` does beyond one teacher's boxes above a score: several looks, calibration, bands, time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule
from torch import nn

from cahqp.detectors.base import Detector
from cahqp.detectors.model_file import load
from cahqp.errors import ConfigError, check_numbers
from cahqp.files import write_json
from cahqp.labels.calibration.file import Calibration, read_calibration
from cahqp.labels.calibration.thresholds import LEAST, check_rules
from cahqp.labels.candidates import Candidates
from cahqp.labels.fusion import Method
from cahqp.labels.refine import Refined, refine
from cahqp.labels.rules import Rules
from cahqp.labels.select import resolve_thresholds
from cahqp.labels.tracking.temporal import TemporalSettings
from cahqp.labels.views import parse_views
from cahqp.relabel.calibrate import identity
from cahqp.relabel.tta import Ensemble, ViewBatch, open_externals


@dataclass(frozen=True)
class Options:
    """The options of `cahqp relabel` that ask for more than a score; see there.

    Attributes:
        calibration: File of `cahqp calibrate`.
        target_precision: Precision asked for on the source.
        top_share: Share of each class's boxes that become labels.
        dynamic: Thresholds follow how sure the teacher is of these frames.
        ignore_share: From this share of the threshold on a box is neither object nor background.
        temporal: Judge boxes by their tracks.
        stationary_weight: What a score counts whose place is always taken.
        weight_by_score: Boxes train with their confidence as weight.
        views: Views of each frame.
        teachers: Further model files.
        predictions: COCO files of other detectors' predictions.
        fuse: How looks become one.
    """

    calibration: Path | None = None
    target_precision: float | None = None
    top_share: float | None = None
    dynamic: bool = False
    ignore_share: float = 1.0
    temporal: bool = False
    stationary_weight: float = 1.0
    weight_by_score: bool = False
    views: list[str] = field(default_factory=list)
    teachers: list[Path] = field(default_factory=list)
    predictions: list[Path] = field(default_factory=list)
    fuse: Method = "wbf"

    @property
    def asked(self) -> bool:
        """Whether anything beyond a score is asked for."""
        return self.settings != Options(fuse=self.fuse).settings or bool(self.calibration or self.files)

    @property
    def files(self) -> dict[str, Path]:
        """Files that the labels depend on, by name."""
        found = {f"teachers.{i}": path for i, path in enumerate(self.teachers)}
        found |= {f"predictions.{i}": path for i, path in enumerate(self.predictions)}
        return found | ({"calibration": self.calibration} if self.calibration else {})

    @property
    def settings(self) -> dict[str, Any]:
        """What the labels depend on besides files."""
        names = ("target_precision", "top_share", "dynamic", "ignore_share", "temporal", "weight_by_score", "views")
        settings = {name: getattr(self, name) for name in names}
        settings |= {"stationary_weight": self.stationary_weight} if self.stationary_weight < 1 else {}
        return settings | ({"fuse": self.fuse} if self.views or self.files else {})

    def check(self, threshold: float | None) -> None:
        """Refuse options that cannot be together, all at once.

        Args:
            threshold: Of `--threshold`.

        Raises:
            ConfigError: Some cannot.
        """
        shares = {"--target_precision": self.target_precision, "--top_share": self.top_share}
        check_numbers(shares | {"--ignore_share": self.ignore_share, "--stationary_weight": self.stationary_weight}, {})
        rules = {"--threshold": threshold is not None, **{name: value is not None for name, value in shares.items()}}
        check_rules(rules)
        parse_views(self.views)
        for name, value in (("--target_precision", self.target_precision), ("--dynamic", self.dynamic)):
            if value and self.calibration is None:
                message = f"{name} needs to know what scores are worth: make a file with `cahqp calibrate` and give it "
                raise ConfigError(message + "as --calibration.")
        if self.stationary_weight < 1 and self.top_share is not None:
            message = (
                "--top_share takes a share of all boxes, and --stationary_weight lowers some of them. Give one of them."
            )
            raise ConfigError(message)
        if self.dynamic and self.top_share is not None:
            message = "--dynamic moves thresholds and --top_share sets them. Give one of them."
            raise ConfigError(message)


class LabelPipeline:
    """Several looks at the frames while they are labelled, and the decisions afterwards.

    Args:
        options: What is asked for.
        detector: The first teacher.
        names: The frames' names.
        threshold: Least score for all classes; `None` takes the model's own, or what the options say.
        fallback: Least score where the model has none.
        nms_iou: Overlap above which the lower-scored of two boxes is dropped.
        max_boxes: Most labels of a frame.

    Raises:
        CahqpError: A file does not fit, or a class has no threshold.
    """

    def __init__(
        self,
        options: Options,
        detector: Detector,
        names: Sequence[str],
        threshold: float | None,
        fallback: float,
        nms_iou: float,
        max_boxes: int,
    ) -> None:
        self.views = parse_views(options.views)
        detectors = [detector, *(load(path) for path in options.teachers)]
        externals = open_externals(options.predictions, detector.classes, dict.fromkeys(names))
        self.ensemble = Ensemble(detectors, self.views, externals, options.fuse)
        held = identity(detectors, self.views, len(externals), options.fuse, nms_iou)
        classes, found = detector.classes, None
        if options.calibration is not None:
            found = read_calibration(options.calibration, held, classes)
        if not self.ensemble.single and found is None and threshold is None and options.top_share is None:
            # Agreement is part of a fused score, so that a threshold of one look's scores asks too much of it.
            print("The model's thresholds are of its own scores, not of fused ones. Give --calibration or --threshold.")
        limits = _limits(options, found, detector, threshold, fallback)
        self.rules = Rules(
            classes,
            np.array([limits[name] for name in classes], np.float64),
            options.ignore_share,
            nms_iou,
            max_boxes,
            self.ensemble.floor,
            TemporalSettings() if options.temporal else None,
            None if found is None else [found.curves[name] for name in classes],
            options.top_share,
            found.means(limits) if found is not None and options.dynamic else None,
            options.stationary_weight,
            options.weight_by_score,
        )

    def module(self) -> LightningModule:
        """Return what looks at batches."""
        return EnsembleExport(self.ensemble)

    def decide(self, shards: Path, refined: Path, run: Path) -> Refined:
        """Decide over all candidates, and write `review.json` and `decisions.json` into the run directory."""
        found = refine(shards, refined, self.rules)
        write_json(run / "review.json", {"frames": found.review.ranked()})
        write_json(run / "decisions.json", found.to_json())
        for reason, count in found.left.items():
            print(f"Time was left aside in {count} recording{'s' * (count != 1)}: {reason}.")
        for reason, count in found.left_parts.items():
            print(f"Time was left aside in {count} part{'s' * (count != 1)} of long recordings: {reason}.")
        return found


class EnsembleExport(LightningModule):
    """Several teachers that only label.

    Args:
        ensemble: Teachers, views and their fusion.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.detectors = nn.ModuleList(ensemble.detectors)  # so that the trainer moves them to its device

    def predict_step(self, batch: ViewBatch, batch_idx: int) -> list[Candidates]:
        """Return the candidates of each frame."""
        return self.ensemble(batch.looks) if batch.looks else []


def _limits(
    options: Options, found: Calibration | None, detector: Detector, threshold: float | None, fallback: float
) -> dict[str, float]:
    """Return the least score of a label by class, calibrated where there is a calibration."""
    classes = detector.classes
    if found is not None and options.target_precision is not None:
        return found.thresholds(options.target_precision)
    given = threshold if threshold is not None else (detector.thresholds or fallback)
    limits = dict(zip(classes, resolve_thresholds(given, classes).double().tolist(), strict=True))
    if found is not None and threshold is None:  # the model's own are of its raw scores
        return {name: max(LEAST, float(found.curves[name](np.array([value]))[0])) for name, value in limits.items()}
    return {name: max(LEAST, value) for name, value in limits.items()}
