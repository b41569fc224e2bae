"""`cahqp reformat`: convert labels for people, and read corrected labels back."""

from __future__ import annotations

import os
from pathlib import Path

from cahqp.coco.image_folder import ImageFolder
from cahqp.errors import ConfigError
from cahqp.files import write_json
from cahqp.labels.formats import WRITERS, read_format
from cahqp.labels.formats.coco import read_label_file, write_coco
from cahqp.labels.formats.options import ReformatOptions
from cahqp.labels.formats.review import accept, merge_review, unique_images
from cahqp.runs.directory import RunDirectory, open_run


def reformat(options: ReformatOptions) -> None:
    """Convert labels.

    Raises:
        CahqpError: Files cannot be read, or do not match `like`.
    """
    inputs = {"labels": options.labels} | ({"like": options.like} if options.like else {})
    settings = {"to": options.to, "source": options.source, "reviewed": options.reviewed}
    with open_run(options.output, "reformat", settings, inputs) as run:
        if run is None:
            return
        like = read_label_file(options.like) if options.like else None
        labels = unique_images(read_format(options.labels, options.source, like))
        if like is not None:
            labels = merge_review(labels, like, options.reviewed)
        elif options.reviewed:
            labels = accept(labels)
        if options.to == "coco":
            write_coco(labels, run.work / "labels.json")
            _write_source(options.like or options.labels, run)
        else:
            WRITERS[options.to](labels, run.work)
        reviewed = sum(image.reviewed for image in labels.images)
        boxes = sum(len(image.boxes) for image in labels.images)
        run.metrics = {"images": len(labels.images), "boxes": boxes, "reviewed": reviewed}
    print(f"{options.output}: {boxes} boxes on {len(labels.images)} images, {reviewed} of them reviewed by a person.")


def _write_source(labels: Path, run: RunDirectory) -> None:
    """Write the folder of the images, from the file that their names come from."""
    file = labels / "labels.json" if labels.is_dir() else labels
    if not file.is_file():
        message = f"{file} does not exist. Give --like the labels.json that was sent out for review."
        raise ConfigError(message)
    root = os.path.relpath(ImageFolder(file).root.resolve(), run.output.resolve())
    write_json(run.work / "source.json", {"root": Path(root).as_posix()})
