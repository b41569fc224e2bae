"""`cahqp reformat`: labels on their way to people, and back."""

from __future__ import annotations

import os
from pathlib import Path

from cahqp.coco.image_folder import ImageFolder
from cahqp.errors import ConfigError
from cahqp.files import write_json
from cahqp.labels.formats import WRITERS, Format, read_format
from cahqp.labels.formats.coco import accepted, brought_back, once, read_coco, write_coco
from cahqp.runs.directory import RunDirectory


def reformat(
    labels: Path,
    to: Format,
    output: Path,
    source: Format = "coco",
    like: Path | None = None,
    reviewed: bool = False,
) -> None:
    """Write labels in another format, and take what people corrected back as truth.

    Args:
        labels: A file or folder of labels.
        to: Format to write.
        output: Directory to make; never overwritten.
        source: Format of `labels`.
        like: The `labels.json` that the review began with: images that did not come back keep what they had, and
            images keep their ids, cameras and times.
        reviewed: Every box and image that comes back was accepted by a person. Without it only those are truth that
            the format marks as drawn or changed by hand.
    """
    inputs = {"labels": labels} | ({"like": like} if like else {})
    run = RunDirectory(output, "reformat", {"to": to, "source": source, "reviewed": reviewed}, inputs, 0)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    with run.whole():
        before = read_coco(like) if like else None
        found = once(read_format(labels, source, before))
        if before is not None:
            found = brought_back(found, before, reviewed)
        elif reviewed:
            found = accepted(found)
        if to == "coco":
            write_coco(found, run.work / "labels.json")
            _say_where(like or labels, run)
        else:
            WRITERS[to](found, run.work)
        seen = sum(image.reviewed for image in found.images)
        boxes = sum(len(image.boxes) for image in found.images)
        run.finish({"images": len(found.images), "boxes": boxes, "reviewed": seen})
    print(f"{output}: {boxes} boxes on {len(found.images)} images, {seen} of them seen by a person.")


def _say_where(labels: Path, run: RunDirectory) -> None:
    """Write where the images lie, as the file that the names come from has it."""
    file = labels / "labels.json" if labels.is_dir() else labels
    if not file.is_file():
        message = f"{file} does not exist. Give --like the labels.json that the review began with."
        raise ConfigError(message)
    root = os.path.relpath(ImageFolder(file).root.resolve(), run.output.resolve())
    write_json(run.work / "source.json", {"root": Path(root).as_posix()})
