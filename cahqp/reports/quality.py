"""`cahqp quality`: statistics of pseudo-labels, and their accuracy where there is ground truth."""

from __future__ import annotations

from typing import Any

import numpy as np

from cahqp.coco.image_folder import ImageFolder
from cahqp.evaluation.ground_truth import read_ground_truth
from cahqp.files import write_json
from cahqp.labels.formats.coco import LabelImage, Labels, read_label_file
from cahqp.labels.ground_truth import used_boxes
from cahqp.reports.inputs import count_reasons, read_object, read_rejected
from cahqp.reports.label_statistics import class_balance, count_labels, estimate_drift, measure_labels
from cahqp.reports.options import QualityOptions
from cahqp.reports.page import write_page
from cahqp.reports.pictures import Picture, class_colours, draw_boxes, load_picture
from cahqp.reports.records import DecisionsRecord, QuarantineRecord
from cahqp.runs.directory import open_run


def quality(options: QualityOptions) -> None:
    """Report on pseudo-labels: counts, scores, tracks, disagreements, class balance, accuracy, drift."""
    roles = ("labels", "source", "ground_truth", "calibration")
    inputs = {role: path for role in roles if (path := getattr(options, role)) is not None}
    with open_run(options.output, "quality", {"pictures": options.pictures}, inputs) as run:
        if run is None:
            return
        labels = read_label_file(options.labels)
        result = _measure(options, labels)
        write_json(run.work / "quality.json", result)
        write_page(
            run.work / "quality.html",
            "quality.html.j2",
            **result,
            frames=_draw_frames(options, labels),
            colours=class_colours(labels.categories.values()),
        )
        run.metrics |= {"images": result["images"], "labels": sum(result["labels"].values())}
    print(f"{options.output}: {run.metrics['labels']} labels on {run.metrics['images']} images.")


def _measure(options: QualityOptions, labels: Labels) -> dict[str, Any]:
    """Return the content of `quality.json`."""
    folder = options.labels if options.labels.is_dir() else options.labels.parent
    result = count_labels(labels)
    result["rejected"] = count_reasons(read_rejected(folder))
    result["temporal"] = read_object(folder / "decisions.json", DecisionsRecord).get("temporal", {})
    if options.source is not None:
        result["balance"] = class_balance(labels, read_ground_truth(options.source))
    if options.ground_truth is not None:
        quarantine = read_object(folder / "quarantine.json", QuarantineRecord)
        unreadable = {str(entry["file_name"]) for entry in quarantine.get("images", [])}
        ground_truth = read_ground_truth(options.ground_truth, tuple(labels.categories.values()))
        result["measured"] = measure_labels(labels, ground_truth, unreadable)
    if options.calibration is not None:
        result["drift"] = estimate_drift(labels, folder, options.calibration)
    return result


def _choose(labels: Labels, count: int) -> list[LabelImage]:
    """Return the images with the most likely mistakes, or evenly spread ones without an estimate of mistakes."""
    mistakes = np.array([float(image.entry.get("mistakes", 0)) for image in labels.images])
    if mistakes.any():
        rows = np.argsort(-mistakes, kind="stable")[:count]
    else:
        rows = np.unique(np.linspace(0, len(mistakes) - 1, min(count, len(mistakes))).astype(int))
    return [labels.images[row] for row in rows]


def _draw_frames(options: QualityOptions, labels: Labels) -> list[tuple[str, Picture, list[dict[str, Any]]]]:
    """Return name, picture and boxes of the frames to review first."""
    images = _choose(labels, options.pictures)
    if not images:
        return []
    root = ImageFolder(options.labels / "labels.json" if options.labels.is_dir() else options.labels).root
    pictures = [load_picture([root], image.name) for image in images]
    return [
        (image.name, picture, draw_boxes(picture, used_boxes(image), labels.categories.values()))
        for image, picture in zip(images, pictures, strict=True)
    ]
