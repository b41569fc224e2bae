"""Class names of COCO, and the mapping of a checkpoint's classes to the requested classes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cahqp.errors import WeightsError

_COCO = """
1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light,
11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow,
22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase, 34 frisbee,
35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard, 42 surfboard,
43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple,
54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair, 63 couch,
64 potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard,
77 cell phone, 78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator, 84 book, 85 clock, 86 vase, 87 scissors,
88 teddy bear, 89 hair drier, 90 toothbrush
"""
# COCO's category ids, which have gaps, and their names.
COCO_IDS: dict[int, str] = {
    int(number): name for number, _, name in (part.strip().partition(" ") for part in _COCO.split(","))
}
COCO_NAMES: tuple[str, ...] = tuple(COCO_IDS.values())
# Official DINO has one output per id from 0 to 90; outputs without a name are untrained.
COCO_91: tuple[str | None, ...] = tuple(COCO_IDS.get(number) for number in range(91))
# Pascal VOC's names of some COCO classes, which Hugging Face's RT-DETR files use.
VOC_NAMES = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}


@dataclass(frozen=True)
class ClassPlan:
    """Rows of a checkpoint for each requested class.

    Attributes:
        names: Requested classes, in order.
        rows: Rows of each class in the checkpoint; empty for a new class.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]

    @property
    def new(self) -> tuple[str, ...]:
        """Classes that the checkpoint lacks; they start untrained."""
        return tuple(name for name, rows in zip(self.names, self.rows, strict=True) if not rows)

    @property
    def counts(self) -> list[int]:
        """Rows per class in the converted class heads."""
        return [max(1, len(rows)) for rows in self.rows]

    @property
    def members(self) -> list[int] | None:
        """Rows per class for `ClassHead`; `None` without unions."""
        return self.counts if max(self.counts) > 1 else None


def parse_classes(text: str) -> dict[str, tuple[str, ...]]:
    """Return the requested classes, each with the names of its parts.

    Args:
        text: Such as `person,vehicle=car+bus+truck`.

    Raises:
        WeightsError: A name is empty or repeated.
    """
    requested: dict[str, tuple[str, ...]] = {}
    for part in text.split(","):
        name, sign, union = (piece.strip() for piece in part.partition("="))
        parts = tuple(piece.strip() for piece in union.split("+")) if sign else (name,)
        if not name or not all(parts):
            message = f"--classes {text!r} has an empty name. Write names with commas, such as car,bus,heavy=bus+truck."
            raise WeightsError(message)
        if name in requested or len(set(parts)) < len(parts):
            message = f"--classes {text!r} has {name!r}, or a part of it, twice. Give each name once."
            raise WeightsError(message)
        requested[name] = parts
    return requested


def plan_classes(requested: Mapping[str, tuple[str, ...]] | None, known: Sequence[str | None]) -> ClassPlan:
    """Return the rows of the requested classes.

    Args:
        requested: Result of `parse_classes`; by default all classes of the checkpoint.
        known: The name of each row of the checkpoint; `None` for an unused row.

    Raises:
        WeightsError: The checkpoint has none of the classes, or lacks a part of a union.
    """
    rows = {name: row for row, name in enumerate(known) if name is not None}
    if requested is None:
        requested = {name: (name,) for name in rows}
    unknown = [part for name, parts in requested.items() if parts != (name,) for part in parts if part not in rows]
    if unknown:
        message = f"--classes makes a union of {_with_hints(unknown, rows)}, which the checkpoint does not have."
        raise WeightsError(message)
    planned = tuple(tuple(rows[part] for part in parts if part in rows) for parts in requested.values())
    if not any(planned):
        message = (
            f"--classes {_with_hints(list(requested), rows)}: the checkpoint has none of them, so no class weights "
            f"would be kept. It has {', '.join(rows)}. Rename with NEW=KNOWN, such as lorry=truck."
        )
        raise WeightsError(message)
    return ClassPlan(tuple(requested), planned)


def _with_hints(names: Sequence[str], known: Mapping[str, int]) -> str:
    """Return the names, each with the closest known name."""
    near = {name: difflib.get_close_matches(name, list(known), 1) for name in names}
    return ", ".join(f"{name} (did you mean {hint[0]}?)" if hint else name for name, hint in near.items())
