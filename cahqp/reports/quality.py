"""`cahqp quality`: what is in a file of pseudo-labels, and how right it is where there is truth to say so."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cahqp.coco.image_folder import ImageFolder
from cahqp.errors import DataError
from cahqp.evaluation.ground_truth import GroundTruth, ImagePredictions, Predictions, read_ground_truth
from cahqp.evaluation.metrics import at_thresholds, average_precision
from cahqp.files import atomic_write, read_json, write_json
from cahqp.labels.calibration.curves import estimated_drift, reliability
from cahqp.labels.calibration.file import read_calibration
from cahqp.labels.formats.coco import HUMAN, Labels, read_coco
from cahqp.reports.quality_page import page
from cahqp.runs.directory import RunDirectory, content_hash


def quality(
    labels: Path,
    output: Path,
    source: Path | None = None,
    ground_truth: Path | None = None,
    calibration: Path | None = None,
    pictures: int = 0,
) -> None:
    """Report on pseudo-labels: counts, confidence, tracks, disagreements, classes against the source.

    Args:
        labels: Directory of `cahqp relabel`, or a COCO file of labels.
        output: Directory for `quality.json` and `quality.html`; never overwritten.
        source: COCO file of the labelled source, to compare how often each class occurs.
        ground_truth: COCO file with truth for the same images, for precision, recall, F1 and AP per class. Images are
            known
            by name.
        calibration: File of `cahqp calibrate`, to estimate without truth how far the calibration has drifted. The
            labels must have been made with it.
        pictures: Number of frames to show, those most worth a look first; they show faces and plates.
    """
    inputs = {"labels": labels, "source": source, "ground_truth": ground_truth, "calibration": calibration}
    given = {name: path for name, path in inputs.items() if path is not None}
    run = RunDirectory(output, "quality", {"pictures": pictures}, given, 0)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    with run.whole():
        found = read_coco(labels)
        folder = labels if labels.is_dir() else labels.parent
        told = _counts(found) | _rejected(folder)
        if source is not None:
            told["balance"] = _balance(found, read_ground_truth(source))
        if ground_truth is not None:
            held = read_ground_truth(ground_truth, tuple(found.categories.values()))
            told["measured"] = measured(found, held, _unreadable(folder))
        if calibration is not None:
            told["drift"] = _drift(found, folder, calibration)
        write_json(run.work / "quality.json", told)
        file = labels / "labels.json" if labels.is_dir() else labels
        root = ImageFolder(file).root if pictures else folder
        with atomic_write(run.work / "quality.html") as html:
            html.write(page(told, found, root, _worst(found, pictures)) + "\n")
        run.finish({"images": told["images"], "labels": sum(told["labels"].values())})
    print(f"{output}: {sum(told['labels'].values())} labels on {told['images']} images.")


def _counts(labels: Labels) -> dict[str, Any]:
    names = list(labels.categories.values())
    boxes = [box for image in labels.images for box in image.boxes]
    kept = [box for box in boxes if not box.ignored]
    tracks: dict[int, list[str]] = defaultdict(list)
    for box in kept:
        if box.track is not None:
            tracks[box.track].append(box.name)
    lengths = [len(own) for own in tracks.values()]
    agreement = [float(box.more["agreement"]) for box in kept if "agreement" in box.more]
    scores = {name: [b.score for b in kept if b.name == name and b.score is not None] for name in names}
    return {
        "images": len(labels.images),
        "empty_images": sum(not any(not b.ignored for b in image.boxes) for image in labels.images),
        "reviewed_images": sum(image.reviewed for image in labels.images),
        "labels": {name: sum(b.name == name for b in kept) for name in names},
        "doubtful": {name: sum(b.name == name and b.ignored for b in boxes) for name in names},
        "by_person": sum(box.origin == HUMAN for box in kept),
        "scores": {name: _spread(values) for name, values in scores.items()},
        "uncertainty": _spread([float(b.more["uncertainty"]) for b in kept if "uncertainty" in b.more]),
        "tracks": {"count": len(lengths), "median_length": float(np.median(lengths)) if lengths else 0.0},
        "filled": sum(box.more.get("reason") == "filled gap" for box in kept),
        "disagreements": {"boxes": sum(a < 1 for a in agreement), "of": len(agreement)},
    }


def _spread(values: list[Any]) -> dict[str, float]:
    if not values:
        return {}
    return {f"p{share}": round(float(np.percentile(values, share)), 4) for share in (5, 25, 50, 75, 95)}


def _rejected(folder: Path) -> dict[str, Any]:
    path = folder / "rejected.json"
    found = read_json(path)["annotations"] if path.is_file() else []
    reasons = Counter(str(annotation.get("reason", "")) for annotation in found)
    decisions = read_json(folder / "decisions.json") if (folder / "decisions.json").is_file() else {}
    return {"rejected": dict(sorted(reasons.items())), "temporal": decisions.get("temporal", {})}


def _balance(labels: Labels, source: GroundTruth) -> dict[str, dict[str, float]]:
    """Return each class's share of the boxes and its number for each image, in the labels and in the source."""
    names = list(labels.categories.values())
    here = Counter(box.name for image in labels.images for box in image.boxes if not box.ignored)
    there = Counter(source.classes[int(n)] for image in source.images for n in image.labels[~image.ignore])
    sums = max(1, sum(here[n] for n in names)), max(1, sum(there[n] for n in names))
    return {
        name: {
            "labels": round(here[name] / sums[0], 6),
            "source": round(there[name] / sums[1], 6),
            "labels_per_image": round(here[name] / max(1, len(labels.images)), 6),
            "source_per_image": round(there[name] / max(1, len(source.images)), 6),
        }
        for name in names
    }


def _unreadable(folder: Path) -> set[str]:
    """Return the names of the images that could not be labelled because they are broken."""
    path = folder / "quarantine.json"
    return {str(entry["file_name"]) for entry in read_json(path)["images"]} if path.is_file() else set()


def measured(labels: Labels, ground_truth: GroundTruth, unreadable: Collection[str] = ()) -> dict[str, Any]:
    """Return precision, recall, F1 and AP50 of the labels, by class and together. Doubtful boxes are left out.

    Args:
        labels: What is judged.
        ground_truth: What it is judged by.
        unreadable: Names of images that could not be labelled; they are left out of the truth, and counted.

    Raises:
        DataError: The truth has other images that the labels do not have.
    """
    by_name = {image.name: image for image in labels.images}
    count = len(ground_truth.images)
    readable = tuple(image for image in ground_truth.images if image.name in by_name or image.name not in unreadable)
    ground_truth = replace(ground_truth, images=readable)
    missing = [image.name for image in ground_truth.images if image.name not in by_name]
    if missing:
        message = f"{len(missing)} images of the truth are not in the labels, {missing[0]!r} among them."
        raise DataError(message)
    index = {name: number for number, name in enumerate(ground_truth.classes)}
    answers = {}
    for image in ground_truth.images:
        kept = [box for box in by_name[image.name].boxes if not box.ignored]
        corners = np.array([box.bbox for box in kept], np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        scores = np.array([1.0 if box.score is None else box.score for box in kept])
        answers[image.id] = ImagePredictions(corners, scores, np.array([index[box.name] for box in kept], np.int64))
    metrics = average_precision(ground_truth, Predictions(ground_truth.classes, answers))
    points = at_thresholds(metrics.matches, 0.0)
    hits = sum(int(found.hits.sum()) for found in metrics.matches.per_class)
    taken = sum(len(found.hits) for found in metrics.matches.per_class)
    objects = sum(int(found.objects.sum()) for found in metrics.matches.per_class)
    per_class = {
        name: {"precision": p.precision, "recall": p.recall, "f1": p.f1, "ap50": metrics.per_class[name].ap50}
        for name, p in points.items()
    }
    return {
        "ap50": metrics.ap50,
        "precision": hits / taken if taken else None,
        "recall": hits / objects if objects else None,
        "f1": 2 * hits / (taken + objects) if taken + objects else None,
        "objects": objects,
        "unreadable": count - len(readable),
        "per_class": per_class,
    }


def _drift(labels: Labels, folder: Path, path: Path) -> dict[str, Any]:
    """Return the estimated drift by class, by the detector's own scores from the band of doubt up.

    What is below it is left out on both sides: there every object has many names, which nothing suppressed.
    """
    names = labels.categories
    calibration = read_calibration(path, None, tuple(names.values()))
    limits = _made_with(folder, path)
    scores: dict[str, list[float]] = {name: [] for name in names.values()}
    for box in (box for image in labels.images for box in image.boxes):
        if box.score is not None:
            scores[box.name].append(float(box.more.get("detector_score", box.score)))
    rejected = folder / "rejected.json"
    for annotation in read_json(rejected)["annotations"] if rejected.is_file() else []:
        if annotation.get("reason") != "overlaps a better box":
            scores[names[annotation["category_id"]]].append(annotation.get("detector_score", annotation["score"]))
    found: dict[str, Any] = {}
    for name, values in scores.items():
        own, (there, hits) = np.array(values, np.float64), calibration.decided[name]
        counts = there >= limits[name]
        bars = reliability(there[counts], hits[counts])
        drift: Mapping[str, float] = estimated_drift(bars, own[own >= limits[name]])
        found[name] = {key: round(value, 6) for key, value in drift.items()}
    return found


def _made_with(folder: Path, calibration: Path) -> dict[str, float]:
    """Return the least score by class of a label in doubt, of labels that were made with a calibration.

    Raises:
        DataError: They were made without it.
    """
    manifest = folder / "manifest.json"
    told = read_json(manifest) if manifest.is_file() else {}
    used = told.get("inputs", {}).get("calibration", {}).get("sha256")
    place = calibration if calibration.is_dir() else calibration.parent
    same = {
        content_hash(path, "calibration") for path in (calibration, place, place / "calibration.json") if path.exists()
    }
    if used not in same:
        message = (
            f"The labels in {folder} were not made with {calibration}. Give --calibration as `cahqp relabel` had it."
        )
        raise DataError(message)
    share = float(told["settings"].get("ignore_share", 1.0))
    return {name: share * limit for name, limit in read_json(folder / "decisions.json")["thresholds"].items()}


def _worst(labels: Labels, count: int) -> list[int]:
    """Return rows of the images most worth a look; those spread over the file where nothing says so."""
    known = [float(image.entry.get("mistakes", 0)) for image in labels.images]
    if any(known):
        return [int(row) for row in np.argsort(-np.array(known), kind="stable")[:count]]
    return [int(row) for row in np.unique(np.linspace(0, len(known) - 1, min(count, len(known))).astype(int))]
