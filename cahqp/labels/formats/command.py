"""`cahqp reformat`: convert labels for people, and read corrected labels back."""

from __future__ import annotations

import os
from pathlib import Path

from cahqp.coco.image_folder import ImageFolder, image_root
from cahqp.coco.subset import copy_file
from cahqp.errors import ConfigError
from cahqp.files import path_inside, write_json
from cahqp.labels.formats import WRITERS, read_format, yolo
from cahqp.labels.formats.coco import Labels, read_label_file, write_coco
from cahqp.labels.formats.inside import clip_boxes
from cahqp.labels.formats.options import ReformatOptions
from cahqp.labels.formats.review import accept, check_sizes, match_names, merge_review, unique_images
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
        like = clip_boxes(read_label_file(options.like), options.like)[0] if options.like else None
        labels = read_format(options.labels, options.source, like)
        labels = unique_images(labels if like is None else match_names(labels, like))
        check_sizes(labels, like, options.labels)
        labels, clipped = clip_boxes(labels, options.labels)
        missing = 0 if like is None else len({i.name for i in like.images} - {i.name for i in labels.images})
        counts = {"clipped": clipped, "not_returned": missing}
        if like is not None:
            labels = merge_review(labels, like, options.reviewed)
        elif options.reviewed:
            labels = accept(labels)
        if options.to == "coco":
            write_coco(labels, run.work / "labels.json")
            _write_source(options.like or options.labels, run)
        else:
            WRITERS[options.to](labels, run.work)
            if options.to == "yolo":
                counts["images_not_found"] = _link_images(labels, options.like or options.labels, run.work)
        reviewed = sum(image.reviewed for image in labels.images)
        boxes = sum(len(image.boxes) for image in labels.images)
        run.metrics = {"images": len(labels.images), "boxes": boxes, "reviewed": reviewed, **counts}
    print(f"{options.output}: {boxes} boxes on {len(labels.images)} images, {reviewed} of them reviewed by a person.")
    sentences = {
        "clipped": "boxes crossed the border of their image and were clipped to it.",
        "not_returned": f"images of {options.like} did not come back and keep their labels.",
        "images_not_found": "images were not found. Put them into images/train of the output.",
    }
    for key, count in counts.items():
        if count:
            print(f"{count} {sentences[key]}")


def _link_images(labels: Labels, path: Path, work: Path) -> int:
    """Link or copy the images to where trainers look for them, and return the number of missing ones."""
    file = path / "labels.json" if path.is_dir() else path
    root = image_root(file) if file.is_file() else file.parent
    missing = 0
    for image in labels.images:
        source = path_inside(root, image.name)
        if source.is_file():
            copy_file(source, path_inside(work / yolo.IMAGES, image.name), link=True)
        else:
            missing += 1
    return missing


def _write_source(labels: Path, run: RunDirectory) -> None:
    """Write the folder of the images, from the file that their names come from."""
    file = labels / "labels.json" if labels.is_dir() else labels
    if not file.is_file():
        message = f"{file} does not exist. Give --like the labels.json that was sent out for review."
        raise ConfigError(message)
    root = os.path.relpath(ImageFolder(file).root.resolve(), run.output.resolve())
    write_json(run.work / "source.json", {"root": Path(root).as_posix()})
