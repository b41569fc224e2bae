"""How a teacher's answers to one view are packed into a record of fixed size, and unpacked.

Detection's form of FDBPL's sparse soft labels (arXiv 2505.18053). The classes of DINO and RT-DETR are sigmoids, which
do not add up to one: so what is left out of a query is kept as its mean, and nothing is normed again.
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
_STEPS = 65535  # of a share in 0..1 as uint16; float16 has a fortieth of that resolution near 1


@dataclass(frozen=True)
class RecordLayout:
    """What one record holds.

    Attributes:
        queries: Queries kept of a view, those with the surest class.
        kept: Classes kept of a query, the most probable; the mean of the others stands for each of them.
        classes: Number of classes of the teacher.
        precision: `packed`: shares as uint16, wrong by at most 1 in 131070; `float32`: exact.
    """

    queries: int
    kept: int
    classes: int
    precision: Precision

    @property
    def dtype(self) -> np.dtype[Any]:
        """The record as NumPy sees it, without gaps. `check` comes first and is zero while nothing was written."""
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
    """One view of a frame, and what the teacher said of it.

    Attributes:
        view: What the view shows of the original image.
        seed: Of its augmentation, colours included.
        probs: (N, C) float32 in 0..1, every query's probability of each class.
        boxes: (N, 4) float32 cxcywh in 0..1 of the view.
    """

    view: View
    seed: int
    probs: NDArray[np.float32]
    boxes: NDArray[np.float32]


def pack(soft: SoftView, layout: RecordLayout) -> NDArray[np.void]:
    """Return the record, (1,), of a view.

    Args:
        soft: With at least `layout.queries` queries.
        layout: What to keep of it.

    Raises:
        RunError: A probability or a box is not a finite number.
    """
    if not (np.isfinite(soft.probs).all() and np.isfinite(soft.boxes).all()):
        message = "An answer of the teacher is not a finite number. Check the weights, or run in float32."
        raise RunError(message)
    record = np.zeros(1, layout.dtype)
    surest = np.argsort(-soft.probs.max(1), kind="stable")[: layout.queries]
    rows = np.sort(surest)  # in the teacher's order, so that with all kept sums come out the same to the last digit
    probs = soft.probs[rows]
    classes = np.sort(np.argsort(-probs, axis=1, kind="stable")[:, : layout.kept], axis=1)
    best = np.take_along_axis(probs, classes, 1)
    others = layout.classes - layout.kept
    mean = (probs.sum(1, dtype=np.float64) - best.sum(1, dtype=np.float64)) / others if others else np.zeros(len(rows))
    one = record[0]
    view = soft.view
    one["seed"], one["mirrored"] = soft.seed, view.mirrored
    one["window"] = (view.left, view.top, view.right, view.bottom)
    one["boxes"] = _narrow(soft.boxes[rows], layout)
    one["classes"], one["probs"], one["rest"] = classes, _narrow(best, layout), _narrow(mean, layout)
    one["check"] = checksum(record)
    return record


def unpack(record: NDArray[np.void], layout: RecordLayout, rest: Rest = "smooth") -> SoftView:
    """Return the view of a record, (1,).

    Args:
        record: As `pack` made it.
        layout: It was made with.
        rest: What the classes left out are given: `smooth`, the mean of what they had; `drop`, zero.
    """
    one = record[0]
    spread = _widen(one["rest"], layout)[:, None] if rest == "smooth" else np.zeros((layout.queries, 1), np.float32)
    probs = np.repeat(spread, layout.classes, axis=1)
    np.put_along_axis(probs, one["classes"].astype(np.int64), _widen(one["probs"], layout), 1)
    left, top, right, bottom = (int(side) for side in one["window"])
    view = View(left, top, right, bottom, bool(one["mirrored"]))
    return SoftView(view, int(one["seed"]), probs, _widen(one["boxes"], layout))


def checksum(record: NDArray[np.void]) -> int:
    """Return the CRC-32 of all but the `check` of a record, (1,); never zero, which stands for nothing written."""
    return zlib.crc32(record.tobytes()[4:]) or 1


def _narrow(values: NDArray[Any], layout: RecordLayout) -> NDArray[Any]:
    narrow: NDArray[Any] = values.astype(np.float32)
    if layout.precision == "packed":
        narrow = np.rint(np.clip(values, 0, 1) * _STEPS).astype(np.uint16)
    return narrow


def _widen(values: NDArray[Any], layout: RecordLayout) -> NDArray[np.float32]:
    wide: NDArray[np.float32] = values.astype(np.float32)
    if layout.precision == "packed":
        wide /= np.float32(_STEPS)
    return wide
