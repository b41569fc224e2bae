"""Boxes of one frame that may become labels, and their lines in shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import RunError
from cahqp.labels.calibration.curves import Curve
from cahqp.labels.shards.records import SCORE_DECIMALS, dumps, image_entry

if TYPE_CHECKING:
    from cahqp.frame import Frame

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """Boxes of one frame that may become labels.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the original frame.
        scores: (N,) in 0..1, highest first.
        labels: (N,) class indices.
        agreement: (N,) share of the views containing the place of a box that detect it, 0..1; `None` for a single view.
        detector_scores: (N,) scores before stationary boxes lost weight; `None` if none did.
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
        optional = (None if values is None else values[rows] for values in (self.agreement, self.detector_scores))
        return Candidates(self.boxes[rows], self.scores[rows], self.labels[rows], *optional)

    def optional_values(self, row: int) -> dict[str, float]:
        """Return agreement and detector score of a row, where they exist."""
        values = {"agreement": self.agreement, "detector_score": self.detector_scores}
        return {key: round(float(v[row]), SCORE_DECIMALS) for key, v in values.items() if v is not None}


def check_finite(boxes: Floats, scores: Floats, name: str) -> None:
    """Check predictions on a frame for NaN and infinity.

    Args:
        boxes: Boxes.
        scores: Scores.
        name: Name of the frame, for the message.

    Raises:
        RunError: A value is NaN or infinite.
    """
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        message = f"A box or score of {name} is NaN or infinite. Check the weights, or run in float32."
        raise RunError(message)


def clip_candidates(
    candidates: Candidates, size: tuple[int, int], floor: float, name: str, min_side: float = 1.0
) -> Candidates:
    """Return the candidates clipped to their frame, highest score first.

    Args:
        candidates: Boxes of one frame.
        size: Height and width of the frame in pixels.
        floor: Boxes with lower scores are left out.
        name: Name of the frame, for the message.
        min_side: Boxes that are narrower or lower, in pixels, are left out.

    Raises:
        RunError: A box or a score is NaN or infinite.
    """
    check_finite(candidates.boxes, candidates.scores, name)
    height, width = size
    candidates = replace(candidates, boxes=np.clip(candidates.boxes, 0, [width, height, width, height]))
    order = np.argsort(-candidates.scores, kind="stable")
    usable = (candidates.scores >= floor) & (shortest_sides(candidates.boxes) >= min_side)
    return candidates[order[usable[order]]]


def shortest_sides(boxes: Floats) -> Floats:
    """Return the shorter side of each box, (N,), in pixels."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf), np.float64)


def encode(position: int, frame: Frame, candidates: Candidates, thumbnail: str | None = None) -> bytes:
    """Return the line of a shard, newline included. Equal candidates give equal bytes.

    Args:
        position: Position of the frame in the input.
        frame: Origin of the frame.
        candidates: Its boxes.
        thumbnail: Its thumbnail, from `encode_thumbnail`, if motion is used.
    """
    record: dict[str, Any] = {
        "position": position,
        "image": image_entry(frame),
        # Not rounded, so that a box falls on the same side of a threshold before and after.
        "boxes": candidates.boxes.tolist(),
        "scores": candidates.scores.tolist(),
        "labels": candidates.labels.tolist(),
    }
    if candidates.agreement is not None:
        record["agreement"] = candidates.agreement.tolist()
    if thumbnail is not None:
        record["thumbnail"] = thumbnail
    return dumps(record).encode() + b"\n"


def from_record(record: Mapping[str, Any]) -> Candidates:
    """Return the candidates of a line that `encode` made."""
    agreement = record.get("agreement")
    return Candidates(
        np.array(record["boxes"], np.float64).reshape(-1, 4),
        np.array(record["scores"], np.float64),
        np.array(record["labels"], np.int64),
        None if agreement is None else np.array(agreement, np.float64),
    )


def calibrated(candidates: Candidates, curves: Sequence[Curve] | None) -> Candidates:
    """Return the candidates with calibrated scores, highest first.

    Args:
        candidates: Boxes of one frame.
        curves: A curve for each class; `None` leaves the scores unchanged.
    """
    if curves is None or not len(candidates):
        return candidates
    scores = np.array([curves[label](score) for label, score in zip(candidates.labels, candidates.scores, strict=True)])
    candidates = replace(candidates, scores=scores)
    return candidates[np.argsort(-scores, kind="stable")]
