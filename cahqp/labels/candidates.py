"""What a teacher, or several, said of a frame before anything is decided: one line of a shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cahqp.association import pairwise_iou
from cahqp.errors import RunError
from cahqp.labels.calibration.curves import Curve
from cahqp.labels.fusion import nms
from cahqp.labels.shards.records import SCORE_DECIMALS, dumps, image_entry

if TYPE_CHECKING:
    from cahqp.frame import Frame

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """The boxes of one frame that may become labels.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the original frame, within it.
        scores: (N,) in 0..1, best first.
        labels: (N,) class indices.
        agreement: (N,) share of the looks that found the box, 0..1; `None` where there was one look.
        detector_scores: (N,) the scores before their place was looked at; `None` where it was not.
    """

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]
    agreement: Floats | None = None
    detector_scores: Floats | None = None

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.scores)

    def __getitem__(self, rows: NDArray[Any]) -> Candidates:
        """Return the boxes that a mask or an index selects."""
        more = (None if values is None else values[rows] for values in (self.agreement, self.detector_scores))
        return Candidates(self.boxes[rows], self.scores[rows], self.labels[rows], *more)

    def known(self, row: int) -> dict[str, float]:
        """Return what is known of a row beside its score, by name."""
        values = {"agreement": self.agreement, "detector_score": self.detector_scores}
        return {key: round(float(v[row]), SCORE_DECIMALS) for key, v in values.items() if v is not None}


def usable(candidates: Candidates, size: tuple[int, int], floor: float, name: str) -> Candidates:
    """Return the candidates within their frame, best first, without those below a floor or a pixel wide.

    Args:
        candidates: Of one frame.
        size: Its height and width.
        floor: Least score.
        name: Of the frame, for the message.

    Raises:
        RunError: A box or a score is not a finite number.
    """
    if not (np.isfinite(candidates.boxes).all() and np.isfinite(candidates.scores).all()):
        message = f"A box or score of {name} is not a finite number. Check the weights, or run in float32."
        raise RunError(message)
    height, width = size
    inside = np.clip(candidates.boxes, 0, [width, height, width, height])
    candidates = replace(candidates, boxes=inside)
    sides = inside[:, 2:] - inside[:, :2]
    order = np.argsort(-candidates.scores, kind="stable")
    good = (candidates.scores >= floor) & (sides >= 1).all(1)
    return candidates[order[good[order]]]


def encode(position: int, frame: Frame, candidates: Candidates) -> bytes:
    """Return the line of a shard, newline included. Equal candidates give equal bytes."""
    record: dict[str, Any] = {
        "position": position,
        "image": image_entry(frame),
        # Not rounded: a box at a threshold must fall to the same side with these options as without them.
        "boxes": candidates.boxes.tolist(),
        "scores": candidates.scores.tolist(),
        "labels": candidates.labels.tolist(),
    }
    if candidates.agreement is not None:
        record["agreement"] = candidates.agreement.tolist()
    return dumps(record).encode() + b"\n"


def from_record(record: Mapping[str, Any]) -> Candidates:
    """Return what `encode` was given."""
    agreement = record.get("agreement")
    return Candidates(
        np.array(record["boxes"], np.float64).reshape(-1, 4),
        np.array(record["scores"], np.float64),
        np.array(record["labels"], np.int64),
        None if agreement is None else np.array(agreement, np.float64),
    )


def calibrated(candidates: Candidates, curves: Sequence[Curve] | None) -> Candidates:
    """Return the candidates with calibrated scores, best first.

    Args:
        candidates: Of one frame.
        curves: One for each class; `None` leaves the scores as they are.
    """
    if curves is None or not len(candidates):
        return candidates
    scores = np.array([curves[label](score) for label, score in zip(candidates.labels, candidates.scores, strict=True)])
    candidates = replace(candidates, scores=scores)
    return candidates[np.argsort(-scores, kind="stable")]


def distinct(candidates: Candidates, limits: Floats, iou: float) -> tuple[NDArray[np.int64], Floats]:
    """Return one row for each place, and how sure the detector was there of every class.

    A detector without suppression names one object several times, under several classes. The box that reaches the
    highest multiple of its threshold stays; what the others said of its class is kept for the vote along the track.

    Args:
        candidates: Of one frame.
        limits: (C,) threshold of each class.
        iou: Overlap above which two boxes are one place.

    Returns:
        (K,) rows, surest first, and (K, C) multiples of the thresholds.
    """
    sure = candidates.scores / limits[candidates.labels]
    rows = nms(candidates.boxes, sure, iou)
    classes = np.zeros((len(rows), len(limits)))
    overlap = pairwise_iou(candidates.boxes[rows], candidates.boxes)
    places, others = np.nonzero(overlap > iou)
    np.maximum.at(classes, (places, candidates.labels[others]), sure[others])
    return rows, classes
