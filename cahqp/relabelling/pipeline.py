"""Teachers, views and rules of a relabelling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lightning.pytorch import LightningModule
from numpy.typing import NDArray

from cahqp.data.sources import FrameSource
from cahqp.detectors.base import Detector
from cahqp.files import write_json
from cahqp.inference.frames import FrameSet
from cahqp.labels.apply_rules import apply_rules
from cahqp.labels.calibration.file import Calibration, read_calibration
from cahqp.labels.calibration.thresholds import MIN_THRESHOLD
from cahqp.labels.rules import CANDIDATE_FLOOR, Rules, thresholds_of
from cahqp.relabelling.options import RelabelOptions
from cahqp.relabelling.shard_writer import CANDIDATES, EnsembleTeacher, SingleTeacher
from cahqp.relabelling.tta import build_ensemble

LABELS = "checkpoints/labels"
DEFAULT_THRESHOLD = 0.3


class LabelPipeline:
    """Path from frames to labels: a teacher or an ensemble, and the rules for its candidates.

    Args:
        options: Options of the command.
        detector: The first teacher.
        source: Frames of the input.

    Attributes:
        teacher: Module that predicts the candidates of a batch of frames.
        frames: Frames as the module expects them.
        rules: Rules that turn candidates into labels.

    Raises:
        CahqpError: A file does not match the options, or a class has no threshold.
    """

    def __init__(self, options: RelabelOptions, detector: Detector, source: FrameSource) -> None:
        if options.plain:
            limits = _thresholds(options, detector)
            self.teacher: LightningModule = SingleTeacher(detector, min(CANDIDATE_FLOOR, float(limits.min())))
            self.frames = FrameSet(source, detector.preprocessing, options.max_invalid_share)
            self.rules = Rules(detector.classes, limits, options, plain=True)
            return
        ensemble = build_ensemble(options, detector, [frame.name for frame in source.frames])
        self.teacher = EnsembleTeacher(ensemble)
        self.frames = ensemble.frames(source, options.max_invalid_share)
        calibration = None
        if options.calibration is not None:
            calibration = read_calibration(options.calibration, ensemble.scope(options.nms_iou), detector.classes)
        elif not ensemble.single and options.threshold is None and options.top_share is None:
            # Agreement lowers the scores of fused boxes, so thresholds of single views are too high for them.
            print("The thresholds of the model do not fit fused scores. Give --calibration or --threshold.")
        self.rules = _calibrated_rules(options, detector, calibration, ensemble.single)


def _thresholds(options: RelabelOptions, detector: Detector) -> NDArray[np.float64]:
    unset = options.threshold is None and options.target_precision is None and options.top_share is None
    if unset and not detector.thresholds:
        print(f"{options.weights} has no thresholds: using {DEFAULT_THRESHOLD}. --threshold changes it.")
    given = options.threshold if options.threshold is not None else (detector.thresholds or DEFAULT_THRESHOLD)
    return thresholds_of(given, detector.classes)


def _calibrated_rules(
    options: RelabelOptions, detector: Detector, calibration: Calibration | None, single: bool
) -> Rules:  # fmt: skip
    limits, classes = _thresholds(options, detector), detector.classes
    if calibration is None:
        return Rules(classes, np.maximum(limits, MIN_THRESHOLD), options)
    curves = [calibration.curves[name] for name in classes]
    if options.target_precision is not None:
        by_class = calibration.thresholds(options.target_precision)
        limits = np.array([by_class[name] for name in classes])
    elif options.threshold is None and not single:  # thresholds of the model are for scores of single views
        by_class = calibration.best_f1()
        limits = np.array([by_class[name] for name in classes])
    elif options.threshold is None:  # thresholds of the model are for scores that are not calibrated
        limits = np.array([float(curve(np.array([value]))[0]) for curve, value in zip(curves, limits, strict=True)])
    rules = Rules(classes, np.maximum(limits, MIN_THRESHOLD), options, curves)
    means = calibration.means(rules.by_class) if options.dynamic else None
    return Rules(classes, rules.limits, options, curves, means)


def label_candidates(run: Path, rules: Rules) -> Path:
    """Apply the rules to the candidates of a run directory, and return the directory of the shard of labels.

    Unless the rules are plain, also writes `review.json` and `decisions.json`, and prints which recordings have no
    tracks.
    """
    decisions = apply_rules(run / CANDIDATES, run / LABELS, rules)
    if not rules.plain:
        write_json(run / "review.json", {"frames": decisions.review.ranked()})
        write_json(run / "decisions.json", decisions.to_json())
        for reason, count in decisions.untracked.items():
            print(f"No tracks in {count} recording{'s' * (count != 1)}: {reason}.")
        for reason, count in decisions.untracked_blocks.items():
            print(f"No tracks in {count} part{'s' * (count != 1)} of long recordings: {reason}.")
    return run / LABELS
