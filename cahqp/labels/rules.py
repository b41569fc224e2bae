"""The rules by which candidates become labels, and their use frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.labels.calibration.curves import Curve
from cahqp.labels.candidates import Candidates
from cahqp.labels.fusion import nms
from cahqp.labels.shards.records import PIXEL_DECIMALS, SCORE_DECIMALS
from cahqp.labels.tracking.temporal import TemporalSettings

Floats = NDArray[np.float64]

BELOW, OVERLAP, TOO_MANY, DOUBTFUL = "below threshold", "overlaps a better box", "over max_boxes", "doubtful"
TAKEN = "place is taken in other frames"


@dataclass(frozen=True)
class Rules:
    """How candidates become labels.

    Attributes:
        classes: The detector's class names.
        limits: (C,) least score of a label.
        ignore_share: From this share of the threshold on a box is neither object nor background; 1 knows no doubt.
        nms_iou: Overlap above which the lower-scored of two boxes is dropped, whatever their classes.
        max_boxes: Most labels of a frame.
        floor: Least score of a candidate.
        temporal: How much is asked of a track; `None` leaves time aside.
        curves: Calibration of each class.
        top_share: Share of a class's candidates that become labels, instead of thresholds.
        source_means: By class, how sure the model was on the source; thresholds then follow how sure it is here.
        stationary_weight: What a score counts whose place is taken in most frames of its recording, where there are
            no tracks to
            say more; 1 leaves places aside.
        weight_by_score: A box trains with its confidence as weight, not fully.
    """

    classes: tuple[str, ...]
    limits: Floats
    ignore_share: float = 1.0
    nms_iou: float = 0.7
    max_boxes: int = 100
    floor: float = 0.05
    temporal: TemporalSettings | None = None
    curves: Sequence[Curve] | None = None
    top_share: float | None = None
    source_means: Mapping[str, float] | None = None
    stationary_weight: float = 1.0
    weight_by_score: bool = False

    def with_thresholds(self, thresholds: Mapping[str, float]) -> Rules:
        """Return the same rules with other thresholds."""
        return replace(self, limits=np.array([thresholds[name] for name in self.classes], np.float64))


def by_frame(record: Mapping[str, Any], candidates: Candidates, rules: Rules) -> dict[str, Any]:
    """Return a frame's record as it will stand in the labels, decided by its scores alone.

    A box below its class's band cannot suppress another one; among the others the better score stays.
    """
    limits, detected = rules.limits[candidates.labels], candidates.detector_scores
    parts: dict[str, list[dict[str, Any]]] = {"kept": [], "ignored": [], "rejected": []}
    doubtful = candidates.scores >= limits * rules.ignore_share
    alive = np.flatnonzero(doubtful)
    stays = set(alive[nms(candidates.boxes[alive], candidates.scores[alive], rules.nms_iou)].tolist())
    for row in range(len(candidates)):
        part, reason = _fate(bool(doubtful[row]), row in stays, candidates.scores[row] >= limits[row])
        if reason in (BELOW, DOUBTFUL) and detected is not None and detected[row] >= limits[row]:
            part, reason = "ignored" if rules.ignore_share < 1 else part, TAKEN  # it may be a car that is parked
        if part == "kept" and len(parts["kept"]) >= rules.max_boxes:
            part, reason = "rejected", TOO_MANY
        box = entry(candidates.labels[row], candidates.boxes[row], candidates.scores[row])
        box |= candidates.known(row) | ({"reason": reason} if reason else {})
        parts[part].append(box)
    return finished(record, parts, rules)


def _fate(doubtful: bool, stays: bool, sure: bool) -> tuple[str, str]:
    if not doubtful:
        return "rejected", BELOW
    if not stays:
        return "rejected", OVERLAP
    return ("kept", "") if sure else ("ignored", DOUBTFUL)


def entry(label: int, box: Floats, score: float) -> dict[str, Any]:
    """Return a box as it stands in a record."""
    pixel = 10**PIXEL_DECIMALS
    x1, y1, x2, y2 = np.rint(box * pixel).tolist()
    bbox = [x1 / pixel, y1 / pixel, (x2 - x1) / pixel, (y2 - y1) / pixel]
    return {"label": int(label), "bbox": bbox, "score": round(min(1.0, float(score)), SCORE_DECIMALS)}


def finished(record: Mapping[str, Any], parts: Mapping[str, list[dict[str, Any]]], rules: Rules) -> dict[str, Any]:
    """Return the record of a frame with every box's uncertainty and the frame's own.

    A box's uncertainty is one less the mean of what is known of it: its score, the share of the looks that agree, the
    share of its track in which it was seen. A frame's `mistakes` is how many of its boxes are expected to be wrong or
    missing: what labels lack to certainty, and what the boxes left out amount to.
    """
    for box in [*parts["kept"], *parts["ignored"]]:
        known = [box[key] for key in ("score", "agreement", "steady") if key in box]
        box["uncertainty"] = round(1 - sum(known) / len(known), SCORE_DECIMALS)
        if rules.weight_by_score:
            box["weight"] = round(1 - box["uncertainty"], SCORE_DECIMALS)
    for box in parts["ignored"]:
        box["iscrowd"] = 1
    left_out = [box["score"] for box in [*parts["ignored"], *parts["rejected"]] if box["reason"] != OVERLAP]
    mistakes = sum(box["uncertainty"] for box in parts["kept"]) + sum(left_out)
    image = {**record["image"], "mistakes": round(mistakes, SCORE_DECIMALS)}
    if parts["kept"]:
        mean = sum(box["uncertainty"] for box in parts["kept"]) / len(parts["kept"])
        image["uncertainty"] = round(mean, SCORE_DECIMALS)
    return {"position": record["position"], "image": image, **parts}
