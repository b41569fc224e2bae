"""`cahqp benchmark measure`: metrics and matches of the models of one arm."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from cahqp.benchmarks.adapt.matches import write_matches
from cahqp.detectors import model_file as model_files
from cahqp.detectors.base import Detector
from cahqp.errors import DataError
from cahqp.evaluation.bootstrap import group_frames
from cahqp.evaluation.ground_truth import GroundTruth, read_ground_truth
from cahqp.evaluation.matching import Matches
from cahqp.evaluation.metrics import Metrics, at_thresholds, average_precision
from cahqp.files import write_json
from cahqp.inference.evaluate import EvaluationFrames, parse_named
from cahqp.inference.options import BenchmarkMeasureOptions
from cahqp.runs.directory import open_run

_log = logging.getLogger(__name__)


def measure(options: BenchmarkMeasureOptions) -> None:
    """Measure models on labelled frames: AP, and precision, recall and F1 at the thresholds in each model file.

    The thresholds were fixed on source validation frames during training; nothing is chosen here.

    Raises:
        DataError: A file has no class with `min_objects` objects.
    """
    models, sets = parse_named(options.weights, "--weights"), parse_named(options.frames, "--frames")
    inputs = {f"weights.{k}": v for k, v in models.items()} | {f"frames.{k}": v for k, v in sets.items()}
    settings = {name: getattr(options, name) for name in ("batch_size", "max_invalid_share", "min_objects")}
    with open_run(options.output, "benchmark measure", settings, inputs, options.seed) as run:
        if run is not None:
            frames = EvaluationFrames(options.batch_size, options.max_invalid_share)
            _measure(models, sets, frames, options.min_objects, run.work)


def _measure(
    models: Mapping[str, Path], sets: Mapping[str, Path], frames: EvaluationFrames, min_objects: int, folder: Path
) -> None:
    metrics: dict[str, dict[str, Any]] = {name: {} for name in models}
    matches: dict[str, dict[str, Matches]] = {name: {} for name in models}
    ground_truths: dict[str, GroundTruth] = {}
    for name, path in models.items():
        detector = model_files.load(path)
        for key, file in sets.items():
            ground_truth = read_ground_truth(file, detector.classes)
            _warn_left_out(ground_truth, file, name)
            predictions = frames.predict(detector, file)
            ground_truths[key] = frames.keep_readable(file, ground_truth)
            measured = average_precision(ground_truths[key], predictions)
            counted = _with_enough_objects(measured, min_objects, file)
            metrics[name][key] = _metrics(measured, counted, detector)
            matches[name][key] = counted.matches
    write_matches(folder, matches, {key: group_frames(ground_truth) for key, ground_truth in ground_truths.items()})
    write_json(folder / "metrics.json", {"models": metrics})
    frames.write_quarantine(folder)


def _warn_left_out(ground_truth: GroundTruth, file: Path, model: str) -> None:
    if ground_truth.left_out:
        categories = ", ".join(f"{category} ({count})" for category, count in ground_truth.left_out.items())
        _log.warning("%s: objects of %s are left out; they are no classes of %s.", file, categories, model)


def _with_enough_objects(measured: Metrics, min_objects: int, file: Path) -> Metrics:
    """Return the metrics of the classes with at least `min_objects` objects."""
    rows = [row for row, own in enumerate(measured.per_class.values()) if own.objects >= min_objects]
    if not rows:
        counts = ", ".join(f"{own.objects} of {name}" for name, own in measured.per_class.items())
        message = f"{file} has {counts}; a class needs {min_objects}. Add labels, or lower --min-objects."
        raise DataError(message)
    matches = Matches(
        tuple(measured.matches.classes[row] for row in rows), tuple(measured.matches.per_class[row] for row in rows)
    )
    per_class = {name: measured.per_class[name] for name in matches.classes}
    ap50, ap = ([getattr(own, name) for own in per_class.values()] for name in ("ap50", "ap"))
    return Metrics(mean(ap50), mean(ap), per_class, measured.images, matches)


def _metrics(measured: Metrics, counted: Metrics, detector: Detector) -> dict[str, Any]:
    points = at_thresholds(counted.matches, detector.thresholds) if detector.thresholds else {}
    means = {
        name: round(sum(getattr(p, name) for p in points.values()) / len(points), 6) if points else None
        for name in ("precision", "recall", "f1")
    }
    return {
        "ap50": counted.ap50,
        "map": counted.map,
        "images": measured.images,
        "objects": {name: of_class.objects for name, of_class in measured.per_class.items()},
        "counted": list(counted.per_class),
        "per_class": {name: of_class.ap50 for name, of_class in measured.per_class.items()},
        "operating": {name: asdict(point) for name, point in points.items()},
        **means,
    }
