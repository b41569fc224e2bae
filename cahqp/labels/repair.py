"""`cahqp repair-labels`: repair one type of label error from ground truth, as an analysis tool."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cahqp.coco.image_folder import ImageFolder
from cahqp.evaluation.errors import CORRECT, ImageErrors, best_of_each_object, find_errors
from cahqp.evaluation.ground_truth import GroundTruthImage, read_ground_truth
from cahqp.files import read_json, write_json
from cahqp.labels.formats.coco import LabelBox, LabelImage, read_label_file, write_coco
from cahqp.labels.ground_truth import as_predictions, labelled_ground_truth, used_boxes
from cahqp.labels.repair_options import Repair, RepairOptions
from cahqp.runs.directory import open_run
from cahqp.runs.evidence import ANALYSIS_ONLY

_TYPES: Mapping[Repair, tuple[str, ...]] = {
    "class": ("class",),
    "missed": (),
    "false-positive": ("background", "both", "duplicate"),
    "box": (CORRECT, "localisation"),
}
REASON = "repaired from ground truth"


def repair_labels(options: RepairOptions) -> None:
    """Write `labels.json` with one type of error repaired. Regions to ignore stay as they are.

    Raises:
        CahqpError: Files cannot be read, or are not of the same images.
    """
    inputs = {"labels": options.labels, "ground_truth": options.ground_truth}
    with open_run(options.output, "repair-labels", {"fix": options.fix}, inputs) as run:
        if run is None:
            return
        labels = read_label_file(options.labels)
        classes = tuple(labels.categories.values())
        folder = options.labels if options.labels.is_dir() else options.labels.parent
        ground_truth = read_ground_truth(options.ground_truth, classes)
        ground_truth = labelled_ground_truth(labels, ground_truth, _unreadable(folder / "quarantine.json"))
        by_name = {image.name: image for image in ground_truth.images}
        changed, images = 0, []
        for image in labels.images:
            count, repaired = 0, image
            if image.name in by_name:
                count, repaired = repair_image(image, by_name[image.name], classes, options.fix)
            changed += count
            images.append(repaired)
        write_coco(replace(labels, images=tuple(images)), run.work / "labels.json")
        file = folder / "labels.json" if options.labels.is_dir() else options.labels
        root = os.path.relpath(ImageFolder(file).root.resolve(), run.output.resolve())
        write_json(run.work / "source.json", {"root": Path(root).as_posix()})
        run.metrics = {ANALYSIS_ONLY: True, "images": len(images), "repaired": changed}
    print(f"{options.output}: {changed} labels repaired ({options.fix}). For analysis only: ground truth was read.")


def _unreadable(path: Path) -> set[str]:
    return {str(entry["file_name"]) for entry in read_json(path)["images"]} if path.is_file() else set()


def repair_image(
    image: LabelImage, ground_truth: GroundTruthImage, classes: Sequence[str], fix: Repair
) -> tuple[int, LabelImage]:
    """Return the number of changed labels, and the image with one type of error repaired.

    Args:
        image: Labels of an image.
        ground_truth: Its true objects.
        classes: Class names by label.
        fix: Type of error.
    """
    found = as_predictions(image, classes)
    errors = find_errors(ground_truth, found)
    used, rows = used_boxes(image), errors.rows(*_TYPES[fix]).tolist()
    if fix == "missed":
        boxes = used + [_label(ground_truth, row, classes) for row in errors.missed.tolist()]
        changed = len(errors.missed)
    elif fix == "false-positive":
        boxes, changed = [box for row, box in enumerate(used) if row not in rows], len(rows)
    else:
        kept = best_of_each_object(errors, found.scores, tuple({CORRECT, *_TYPES[fix]})).tolist()
        boxes = [_repaired(used[row], errors, row, ground_truth, classes, fix) if row in rows else used[row]
                 for row in kept]  # fmt: skip
        changed = len(rows)
    return changed, replace(image, boxes=(*boxes, *(box for box in image.boxes if box.ignored)))


def _repaired(
    box: LabelBox, errors: ImageErrors, row: int, image: GroundTruthImage, classes: Sequence[str], fix: Repair
) -> LabelBox:
    true = _label(image, int(errors.objects[row]), classes)
    more: Mapping[str, Any] = {**box.more, "reason": REASON}
    return replace(box, name=true.name, more=more) if fix == "class" else replace(box, bbox=true.bbox, more=more)


def _label(image: GroundTruthImage, row: int, classes: Sequence[str]) -> LabelBox:
    """Return an object as a label with score 1."""
    x1, y1, x2, y2 = image.boxes[row].tolist()
    return LabelBox(classes[image.labels[row]], (x1, y1, x2 - x1, y2 - y1), 1.0, more={"reason": REASON})
