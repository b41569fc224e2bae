"""Content of `metrics.json`: all models on all sets of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cahqp.errors import ConfigError
from cahqp.evaluation.bootstrap import group_frames, paired_bootstrap
from cahqp.evaluation.ground_truth import GroundTruth, Predictions
from cahqp.evaluation.matching import Matches, average_precisions
from cahqp.evaluation.metrics import Metrics, average_precision, best_f1, macro

_DIGITS = 6


def score(
    predictions: Mapping[str, Mapping[str, Predictions]],
    ground_truth: Mapping[str, GroundTruth],
    *,
    comparisons: Sequence[tuple[str, str]] = (),
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Measure every model on every set of frames.

    Args:
        predictions: Predictions by name of the model and of the set of frames.
        ground_truth: Ground truth by name of the set of frames, read with the models' classes.
        comparisons: Pairs (model, baseline). Each difference gets a bootstrap interval on each set of frames.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.

    Returns:
        `{"models": {model: {frames: {"ap50", "map", "images", "per_class", "per_recording", ...}}}, "differences":
        [...]}`; AP in 0..1, `None` without objects.

    Raises:
        ConfigError: A comparison names a model that was not measured.
        DataError: An image has no predictions, or the classes differ.
    """
    unknown = sorted({name for pair in comparisons for name in pair} - predictions.keys())
    if unknown:
        message = f"Cannot compare {', '.join(unknown)}: the models measured are {', '.join(predictions)}."
        raise ConfigError(message)
    measured = {
        model: {frames: average_precision(ground_truth[frames], own) for frames, own in sets.items()}
        for model, sets in predictions.items()
    }
    groups = {frames: group_frames(own) for frames, own in ground_truth.items()}
    differences = []
    for model, baseline in comparisons:
        for frames, metrics in measured[model].items():
            if frames in measured[baseline] and metrics.ap50 is not None:
                pair = metrics.matches, measured[baseline][frames].matches
                difference = paired_bootstrap(*pair, groups[frames], seed=seed, resamples=resamples)
                differences.append({"model": model, "baseline": baseline, "frames": frames, **asdict(difference)})
    models = {
        model: {frames: _entry(metrics, ground_truth[frames]) for frames, metrics in sets.items()}
        for model, sets in measured.items()
    }
    return {"models": _rounded(models), "differences": _rounded(differences)}


def _entry(metrics: Metrics, ground_truth: GroundTruth) -> dict[str, Any]:
    entry = {
        "ap50": metrics.ap50,
        "map": metrics.map,
        "images": metrics.images,
        "per_class": {name: own.ap50 for name, own in metrics.per_class.items()},
        "per_class_map": {name: own.ap for name, own in metrics.per_class.items()},
        "objects": {name: own.objects for name, own in metrics.per_class.items()},
        "best_f1": {name: asdict(point) for name, point in best_f1(metrics.matches).items()},
        "per_recording": _per_recording(metrics.matches, ground_truth),
    }
    return entry | ({"left_out": dict(ground_truth.left_out)} if ground_truth.left_out else {})


def _per_recording(matches: Matches, ground_truth: GroundTruth) -> dict[str, dict[str, Any]]:
    """Return AP50 (mean over the recording's classes), images and objects of each recording."""
    recordings = np.array([image.recording for image in ground_truth.images])
    objects = sum(own.objects for own in matches.per_class)
    entries = {}
    for name in dict.fromkeys(recordings.tolist()):
        selected = recordings == name
        entries[name] = {
            "ap50": macro(average_precisions(matches, selected.astype(np.int64))),
            "images": int(selected.sum()),
            "objects": int(np.sum(objects * selected)),
        }
    return entries


def _rounded(value: Any) -> Any:
    """Return JSON values with all floats rounded."""
    if isinstance(value, dict):
        return {key: _rounded(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_rounded(child) for child in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
