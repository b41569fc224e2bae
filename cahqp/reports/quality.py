"""`cahqp quality`: statistics of pseudo-labels, and their accuracy where there is ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cahqp.coco.image_folder import ImageFolder
from cahqp.evaluation.ground_truth import read_ground_truth
from cahqp.files import write_json
from cahqp.labels.formats.coco import LabelImage, Labels, read_coco
from cahqp.reports.inputs import read_object
from cahqp.reports.label_statistics import class_balance, count_labels, estimate_drift, measure_labels
from cahqp.reports.labels import named_colours, read_rejected
from cahqp.reports.options import QualityOptions
from cahqp.reports.page import write_page
from cahqp.reports.pictures import Picture, draw_boxes, load_picture
from cahqp.runs.directory import open_run


def quality(options: QualityOptions) -> None:
    """Report on pseudo-labels: counts, scores, tracks, disagreements, class balance, accuracy, drift."""
    roles = ("labels", "source", "ground_truth", "calibration")
    inputs = {role: path for role in roles if (path := getattr(options, role)) is not None}
    with open_run(options.output, "quality", {"pictures": options.pictures}, inputs) as run:
        if run is None:
            return
        labels = read_coco(options.labels)
        result = _measure(options, labels)
        write_json(run.work / "quality.json", result)
        frames = _draw_frames(options, labels)
        page = {**result, **_tables(result), "frames": frames, "colours": named_colours(labels.categories)}
        write_page(run.work / "quality.html", "quality.html.j2", **page)
        run.metrics |= {"images": result["images"], "labels": sum(result["labels"].values())}
    print(f"{options.output}: {run.metrics['labels']} labels on {run.metrics['images']} images.")


def _measure(options: QualityOptions, labels: Labels) -> dict[str, Any]:
    """Return the content of `quality.json`."""
    folder = _folder(options.labels)
    decisions = read_object(folder / "decisions.json")
    result = count_labels(labels) | {"rejected": read_rejected(folder), "temporal": decisions.get("temporal", {})}
    if options.source is not None:
        result["balance"] = class_balance(labels, read_ground_truth(options.source))
    if options.ground_truth is not None:
        unreadable = {str(entry["file_name"]) for entry in read_object(folder / "quarantine.json").get("images", [])}
        ground_truth = read_ground_truth(options.ground_truth, tuple(labels.categories.values()))
        result["measured"] = measure_labels(labels, ground_truth, unreadable)
    if options.calibration is not None:
        result["drift"] = estimate_drift(labels, folder, options.calibration)
    return result


def _folder(labels: Path) -> Path:
    return labels if labels.is_dir() else labels.parent


def _draw_frames(options: QualityOptions, labels: Labels) -> list[tuple[str, Picture, list[dict[str, Any]]]]:
    """Return name, picture and boxes of the frames to review first."""
    images = _choose(labels, options.pictures)
    if not images:
        return []
    root = ImageFolder(options.labels / "labels.json" if options.labels.is_dir() else options.labels).root
    return [_draw(image, labels, root) for image in images]


def _choose(labels: Labels, count: int) -> list[LabelImage]:
    """Return the images with the most likely mistakes, or evenly spread ones without an estimate of mistakes."""
    mistakes = np.array([float(image.entry.get("mistakes", 0)) for image in labels.images])
    if mistakes.any():
        rows = np.argsort(-mistakes, kind="stable")[:count]
    else:
        rows = np.unique(np.linspace(0, len(mistakes) - 1, min(count, len(mistakes))).astype(int))
    return [labels.images[row] for row in rows]


def _draw(image: LabelImage, labels: Labels, root: Path) -> tuple[str, Picture, list[dict[str, Any]]]:
    ids = {name: key for key, name in labels.categories.items()}
    boxes = [
        {"bbox": list(box.bbox), "category_id": ids[box.name]} | ({} if box.score is None else {"score": box.score})
        for box in image.boxes
        if not box.ignored
    ]
    picture = load_picture([root], image.name)
    return image.name, picture, draw_boxes(picture, boxes, labels.categories)


def _tables(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of the page's tables."""
    scores = {name: [f"{p[key]:.2f}" for key in ("p5", "p50", "p95")] for name, p in result["scores"].items() if p}
    measured, balance, drift = (result.get(key, {}) for key in ("measured", "balance", "drift"))
    return {
        "classes": [
            [name, count, result["doubtful"][name], *scores.get(name, ["-"] * 3)]
            for name, count in result["labels"].items()
        ],
        "accuracy": [
            [name, *(row[key] for key in ("precision", "recall", "f1", "ap50"))]
            for name, row in ([("all", measured), *measured["per_class"].items()] if measured else [])
        ],
        "shares": [
            [name, row["labels"], row["source"], *(f"{row[f'{key}_per_image']:.2f}" for key in ("labels", "source"))]
            for name, row in balance.items()
        ],
        "notes": _notes(result),
        "drifts": [
            [name, *(row[key] for key in ("distance", "expected_error", "unknown"))] for name, row in drift.items()
        ],
    }


def _notes(result: Mapping[str, Any]) -> list[str]:
    """Return sentences on tracks and on the agreement of views and teachers."""
    tracks, temporal, disagreements = result["tracks"], result["temporal"], result["disagreements"]
    notes = []
    if tracks["count"]:
        notes.append(f"{tracks['count']:,} tracks; half of them are longer than {tracks['median_length']:g} frames.")
        notes.append(f"{result['filled']:,} labels fill gaps.")
    for reason, count in temporal.get("left_alone", {}).items():
        notes.append(f"Tracks were not used in {count} recordings: {reason}.")
    for reason, count in temporal.get("left_alone_in_part", {}).items():
        notes.append(f"Tracks were not used in {count} parts of long recordings: {reason}.")
    if disagreements["of"]:
        differing, total = disagreements["boxes"], disagreements["of"]
        notes.append(f"Views or teachers disagree on {differing:,} of {total:,} labels.")
    return notes
