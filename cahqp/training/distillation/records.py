"""Records of fixed size with the soft labels of one view.

This adapts FDBPL's sparse soft labels (arXiv 2505.18053) to detection. The classes of DINO and RT-DETR are sigmoids,
which do not add up to one. So the classes left out of a query are kept as their mean, without normalisation.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import RunError
from cahqp.frame import View

Precision = Literal["packed", "float32"]
Rest = Literal["smooth", "drop"]
_STEPS = 65535  # of a share in 0..1 as uint16; near 1, float16 has a fortieth of that resolution


@dataclass(frozen=True)
class RecordLayout:
    """Layout of a record.

    Attributes:
        queries: Number of queries of a view, those with the highest class probabilities.
        kept: Number of classes of a query, the most probable ones. The mean of the others stands for each of them.
        classes: Number of classes of the teacher.
        precision: `packed`: shares as uint16, with errors up to 1 in 131070; `float32`: exact.
    """

    queries: int
    kept: int
    classes: int
    precision: Precision

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy type of the record, without gaps. `check` is zero in a record that is not written."""
        share = "<u2" if self.precision == "packed" else "<f4"
        index = "u1" if self.classes <= 256 else "<u2"
        return np.dtype(
            [
                ("check", "<u4"),
                ("seed", "<u8"),
                ("window", "<u2", (4,)),
                ("mirrored", "u1"),
                ("boxes", share, (self.queries, 4)),
                ("classes", index, (self.queries, self.kept)),
                ("probs", share, (self.queries, self.kept)),
                ("rest", share, (self.queries,)),
            ]
        )


@dataclass(frozen=True)
class SoftView:
    """One view of a frame with the teacher's soft labels.

    Attributes:
        view: Part of the original image.
        seed: Seed of the augmentation, including colours.
        probs: (N, C) float32 in 0..1, probability of each class for each query.
        boxes: (N, 4) float32 cxcywh in 0..1 of the view.
    """

    view: View
    seed: int
    probs: NDArray[np.float32]
    boxes: NDArray[np.float32]


def pack(soft: SoftView, layout: RecordLayout) -> NDArray[np.void]:
    """Return the record, (1,), of a view.

    Args:
        soft: View with at least `layout.queries` queries.
        layout: Layout of the record.

    Raises:
        RunError: A probability or a box is NaN or infinite.
    """
    if not (np.isfinite(soft.probs).all() and np.isfinite(soft.boxes).all()):
        message = "A prediction of the teacher is NaN or infinite. Check the weights, or run in float32."
        raise RunError(message)
    record = np.zeros(1, layout.dtype)
    best_queries = np.argsort(-soft.probs.max(1), kind="stable")[: layout.queries]
    rows = np.sort(best_queries)  # the teacher's order keeps sums equal to the last digit
    probs = soft.probs[rows]
    classes = np.sort(np.argsort(-probs, axis=1, kind="stable")[:, : layout.kept], axis=1)
    best = np.take_along_axis(probs, classes, 1)
    others = layout.classes - layout.kept
    mean = (probs.sum(1, dtype=np.float64) - best.sum(1, dtype=np.float64)) / others if others else np.zeros(len(rows))
    one, view = record[0], soft.view
    one["seed"], one["mirrored"] = soft.seed, view.mirrored
    one["window"] = (view.left, view.top, view.right, view.bottom)
    one["boxes"] = _narrow(soft.boxes[rows], layout)
    one["classes"], one["probs"], one["rest"] = classes, _narrow(best, layout), _narrow(mean, layout)
    one["check"] = checksum(record)
    return record


def unpack(record: NDArray[np.void], layout: RecordLayout, rest: Rest = "smooth") -> SoftView:
    """Return the view of a record, (1,).

    Args:
        record: Record that `pack` made.
        layout: Layout of the record.
        rest: Probability of the classes left out: `smooth` takes their mean, `drop` takes zero.
    """
    one = record[0]
    spread = _widen(one["rest"], layout)[:, None] if rest == "smooth" else np.zeros((layout.queries, 1), np.float32)
    probs = np.repeat(spread, layout.classes, axis=1)
    np.put_along_axis(probs, one["classes"].astype(np.int64), _widen(one["probs"], layout), 1)
    left, top, right, bottom = (int(side) for side in one["window"])
    view = View(left, top, right, bottom, bool(one["mirrored"]))
    return SoftView(view, int(one["seed"]), probs, _widen(one["boxes"], layout))


def checksum(record: NDArray[np.void]) -> int:
    """Return the CRC-32 of a record, (1,), without `check`; never zero, which marks a record as not written."""
    return zlib.crc32(record.tobytes()[4:]) or 1


def _narrow(values: NDArray[Any], layout: RecordLayout) -> NDArray[Any]:
    packed = layout.precision == "packed"
    return np.rint(np.clip(values, 0, 1) * _STEPS).astype(np.uint16) if packed else values.astype(np.float32)


def _widen(values: NDArray[Any], layout: RecordLayout) -> NDArray[np.float32]:
    wide: NDArray[np.float32] = values.astype(np.float32)
    if layout.precision == "packed":
        wide /= np.float32(_STEPS)
    return wide
