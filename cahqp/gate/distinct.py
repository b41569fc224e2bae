"""Check that no labelled frame counts more than once: copies would narrow the intervals of a gate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cahqp.edge.capture import read_valid_frames
from cahqp.errors import DataError
from cahqp.evaluation.ground_truth import read_ground_truth


def check_distinct(paths: Sequence[Path], classes: Sequence[str]) -> None:
    """Check that all labelled frames with objects differ in their decoded pixels.

    Frames without objects may be equal: they prove nothing, and a camera that is off returns many.

    Args:
        paths: COCO files of all labelled sets.
        classes: Class names of the packages.

    Raises:
        DataError: Two frames have equal pixels, or a frame cannot be decoded.
    """
    places: dict[str, str] = {}
    copies = []
    for path in paths:
        labelled = {image.id for image in read_ground_truth(path, classes).images if len(image.boxes)}
        for frame in read_valid_frames(str(path)):
            if frame.id in labelled:
                place = f"{path}: {frame.name}"
                first = places.setdefault(frame.digest(), place)
                copies += [f"{place} is {first}"] if first is not place else []
    if copies:
        message = (
            f"{len(copies)} labelled frames are copies and would count more than once: {'; '.join(copies[:3])}. "
            "Give each frame once, in one file."
        )
        raise DataError(message)
