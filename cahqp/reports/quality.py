"""`cahqp quality`: statistics of pseudo-labels, and their accuracy where there is ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cahqp.coco.image_folder import ImageFolder
from cahqp.evaluation.ground_truth import read_ground_truth
from cahqp.files import read_json, write_json
from cahqp.labels.formats.coco import LabelImage, Labels, read_coco
from cahqp.reports.label_statistics import class_balance, count_labels, estimate_drift, measure_labels
from cahqp.reports.labels import named_colours, read_rejected
from cahqp.reports.page import write_page
from cahqp.reports.pictures import Picture, draw_boxes, load_picture
from cahqp.runs.directory import RunDirectory


def quality(
    labels: Path,
    output: Path,
    source: Path | None = None,
    ground_truth: Path | None = None,
    calibration: Path | None = None,
    pictures: int = 0,
) -> None:
    """Report on pseudo-labels: counts, scores, tracks, disagreements, class balance.

    Args:
        labels: Directory of `cahqp relabel`, or a COCO file of labels.
        output: Directory for `quality.json` and `quality.html`; never overwritten.
        source: COCO file of the labelled source, to compare the class frequencies.
        ground_truth: COCO file with ground truth for the same images, matched by name. Adds precision, recall, F1 and
            AP50 per class.
        calibration: File of `cahqp calibrate` that the labels were made with. Adds an estimate of calibration drift
            without ground truth.
        pictures: Number of frames to show, the most doubtful first. They may contain faces and licence plates.
    """
    inputs = {"labels": labels, "source": source, "ground_truth": ground_truth, "calibration": calibration}
    given = {name: path for name, path in inputs.items() if path is not None}
    run = RunDirectory(output, "quality", {"pictures": pictures}, given, 0)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    with run.whole():
        file = read_coco(labels)
        folder = labels if labels.is_dir() else labels.parent
        result = count_labels(file) | {"rejected": read_rejected(folder), "temporal": _temporal(folder)}
        if source is not None:
            result["balance"] = class_balance(file, read_ground_truth(source))
        if ground_truth is not None:
            reference = read_ground_truth(ground_truth, tuple(file.categories.values()))
            result["measured"] = measure_labels(file, reference, _unreadable(folder))
        if calibration is not None:
            result["drift"] = estimate_drift(file, folder, calibration)
        write_json(run.work / "quality.json", result)
        images = _choose(file, pictures)
        root = ImageFolder(labels / "labels.json" if labels.is_dir() else labels).root if images else folder
        frames = [_draw(image, file, root) for image in images]
        colours = named_colours(file.categories)
        write_page(
            run.work / "quality.html", "quality.html.j2", **result, **_tables(result), frames=frames, colours=colours
        )
        run.finish({"images": result["images"], "labels": sum(result["labels"].values())})
    print(f"{output}: {sum(result['labels'].values())} labels on {result['images']} images.")


def _temporal(folder: Path) -> dict[str, Any]:
    path = folder / "decisions.json"
    return dict(read_json(path).get("temporal", {})) if path.is_file() else {}


def _unreadable(folder: Path) -> set[str]:
    """Return the names of the images that could not be read during relabelling."""
    path = folder / "quarantine.json"
    return {str(entry["file_name"]) for entry in read_json(path)["images"]} if path.is_file() else set()


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
