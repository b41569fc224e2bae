"""Rules that turn candidates into labels, and their application to single frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import ConfigError
from cahqp.labels.calibration.curves import Curve
from cahqp.labels.candidates import Candidates, shortest_sides
from cahqp.labels.fusion import nms
from cahqp.labels.options import LabelOptions
from cahqp.labels.shards.records import PIXEL_DECIMALS, SCORE_DECIMALS
from cahqp.labels.tracking.motion import ignore_shares
from cahqp.motion import Motion

Floats = NDArray[np.float64]

# Values of `reason` in label files.
OUTSIDE, BELOW, OVERLAP = "outside the frame", "below threshold", "overlaps a better box"
TOO_MANY, DOUBTFUL, STATIONARY = "over max_boxes", "doubtful", "place is taken in other frames"
MOVING = "moves without a label"

CANDIDATE_FLOOR = 0.05
"""Lowest score of a candidate. Detectors return hundreds of boxes with scores near zero on every frame."""


@dataclass(frozen=True)
class Rules:
    """Rules that turn candidates into labels.

    Attributes:
        classes: Class names of the detector.
        limits: (C,) lowest score of a label.
        options: Options that apply to all classes.
        curves: Calibration curve of each class; `None` if scores are not calibrated.
        source_means: Mean score on the source by class; thresholds then follow the mean scores on the target.
        plain: Thresholds, suppression and `max_boxes` alone decide. Labels have no uncertainty, boxes outside the frame
            are rejected, and equal scores stay in the order of the detector.
    """

    classes: tuple[str, ...]
    limits: Floats
    options: LabelOptions = field(default_factory=LabelOptions)
    curves: Sequence[Curve] | None = None
    source_means: Mapping[str, float] | None = None
    plain: bool = False

    @property
    def by_class(self) -> dict[str, float]:
        """Lowest score of a label by class name."""
        return dict(zip(self.classes, self.limits.tolist(), strict=True))


def thresholds_of(thresholds: float | Mapping[str, float], classes: Sequence[str]) -> Floats:
    """Return (C,) thresholds in the order of the classes, rounded to float32 as scores are.

    Args:
        thresholds: Lowest score of a label, 0..1, for all classes or by class name.
        classes: Class names of the detector.

    Raises:
        ConfigError: Thresholds are missing, unknown or out of range. The message lists all problems.
    """
    by_name = dict(thresholds) if isinstance(thresholds, Mapping) else dict.fromkeys(classes, thresholds)
    problems = [f"class {name!r} has none" for name in classes if name not in by_name]
    problems += [f"{name!r} is no class of the model" for name in by_name if name not in classes]
    problems += [f"{value} for {name!r} is not in 0..1" for name, value in by_name.items() if not 0 <= value <= 1]
    if problems:
        message = f"Thresholds: {'; '.join(problems)}. Give one number, or one for each of {', '.join(classes)}."
        raise ConfigError(message)
    return np.array([by_name[name] for name in classes], np.float32).astype(np.float64)


def label_frame(
    record: Mapping[str, Any], candidates: Candidates, rules: Rules, motion: Motion | None = None
) -> dict[str, Any]:
    """Return the label record of a frame, decided by its scores alone.

    A box below the band of its class cannot suppress another box. Suppression ignores classes, because a van detected
    as car and as truck is one van.

    Args:
        record: `position` and `image` of the frame.
        candidates: Boxes of the frame, highest score first.
        rules: Rules to apply.
        motion: Moving pixels of the frame, if known.
    """
    options, limits, detected = rules.options, rules.limits[candidates.labels], candidates.detector_scores
    inside = shortest_sides(candidates.boxes) >= 1
    in_band = candidates.scores >= limits * ignore_shares(options, motion, candidates.boxes)
    alive = np.flatnonzero(inside & in_band)
    ranking = -np.arange(len(alive), dtype=np.float64) if rules.plain else candidates.scores[alive]
    unsuppressed = set(alive[nms(candidates.boxes[alive], ranking, options.nms_iou)].tolist())
    parts: dict[str, list[dict[str, Any]]] = {"kept": [], "ignored": [], "rejected": []}
    for row in range(len(candidates)):
        if not inside[row]:
            part, reason = "rejected", OUTSIDE
        else:
            part, reason = _decide(bool(in_band[row]), row in unsuppressed, candidates.scores[row] >= limits[row])
        if reason in (BELOW, DOUBTFUL) and detected is not None and detected[row] >= limits[row]:
            # It may be a parked car, so training must not take it for background.
            part, reason = "ignored" if options.ignore_share < 1 else part, STATIONARY
        if part == "kept" and len(parts["kept"]) >= options.max_boxes:
            part, reason = "rejected", TOO_MANY
        box = box_entry(candidates.labels[row], candidates.boxes[row], candidates.scores[row])
        box |= candidates.optional_values(row) | ({"reason": reason} if reason else {})
        parts[part].append(box)
    parts["ignored"] += moving_regions(motion, parts["kept"])
    return complete_record(record, parts, rules)


def moving_regions(motion: Motion | None, kept: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the moving regions that no label covers, as boxes of the first class with score 0."""
    if motion is None:
        return []
    covered = np.array([box["bbox"] for box in kept], np.float64).reshape(-1, 4)
    covered[:, 2:] += covered[:, :2]
    return [box_entry(0, box, 0.0) | {"reason": MOVING} for box in motion.regions(covered)]


def _decide(in_band: bool, unsuppressed: bool, above_threshold: bool) -> tuple[str, str]:
    """Return the part of the record that a box belongs to, and the reason."""
    if not in_band:
        return "rejected", BELOW
    if not unsuppressed:
        return "rejected", OVERLAP
    return ("kept", "") if above_threshold else ("ignored", DOUBTFUL)


def box_entry(label: int, box: Floats, score: float) -> dict[str, Any]:
    """Return a box as an entry of a record: rounded, and xywh. Corners are rounded first, so that it stays inside."""
    pixel = 10**PIXEL_DECIMALS
    x1, y1, x2, y2 = np.rint(box * pixel).tolist()
    bbox = [x1 / pixel, y1 / pixel, (x2 - x1) / pixel, (y2 - y1) / pixel]
    return {"label": int(label), "bbox": bbox, "score": round(min(1.0, float(score)), SCORE_DECIMALS)}


def complete_record(
    record: Mapping[str, Any], parts: Mapping[str, list[dict[str, Any]]], rules: Rules
) -> dict[str, Any]:
    """Return the label record of a frame with the uncertainty of every box and of the frame, unless rules are plain.

    The uncertainty of a box is one minus the mean of its score, the share of views that agree on it, and the share of
    its track in which it was detected, as far as they exist. `mistakes` of a frame is the expected number of wrong and
    missing boxes: uncertainties of labels plus scores of dropped boxes.
    """
    image = dict(record["image"])
    result = {"position": record["position"], "image": image, **parts}
    if rules.plain:
        return result
    for box in [*parts["kept"], *parts["ignored"]]:
        evidence = [box[key] for key in ("score", "agreement", "steady") if key in box]
        box["uncertainty"] = round(1 - sum(evidence) / len(evidence), SCORE_DECIMALS)
        if rules.options.weight_by_score:
            box["weight"] = round(1 - box["uncertainty"], SCORE_DECIMALS)
    for box in parts["ignored"]:
        box["iscrowd"] = 1
    dropped = [box["score"] for box in [*parts["ignored"], *parts["rejected"]] if box["reason"] != OVERLAP]
    uncertainty = sum(box["uncertainty"] for box in parts["kept"])
    image["mistakes"] = round(uncertainty + sum(dropped), SCORE_DECIMALS)
    if parts["kept"]:
        image["uncertainty"] = round(uncertainty / len(parts["kept"]), SCORE_DECIMALS)
    return result
