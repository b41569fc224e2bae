"""All models on all sets of frames: the content of `metrics.json`."""

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
        predictions: By model name, then by name of the set of frames.
        ground_truth: By name of the set of frames, read with the models' classes.
        comparisons: Pairs (model, baseline) whose difference gets a bootstrap interval on each set of frames.
        seed: Seeds the bootstrap.
        resamples: Draws of the bootstrap.

    Returns:
        `{"models": {model: {frames: {"ap50", "map", "images", "per_class", "per_recording", ...}}}, "differences":
        [...]}`; AP in 0..1, `None` where nothing was there to be found.

    Raises:
        ConfigError: A comparison names a model that was not measured.
        DataError: An image has no predictions, or the classes differ.
    """
    unknown = sorted({name for pair in comparisons for name in pair} - predictions.keys())
    if unknown:
        message = f"Cannot compare {', '.join(unknown)}: the models measured are {', '.join(predictions)}."
        raise ConfigError(message)
    measured = {
        model: {frames: average_precision(ground_truth[frames], answers) for frames, answers in sets.items()}
        for model, sets in predictions.items()
    }
    return {
        "models": {
            model: {frames: _entry(metrics, ground_truth[frames]) for frames, metrics in sets.items()}
            for model, sets in measured.items()
        },
        "differences": [
            {"model": model, "baseline": baseline, "frames": frames}
            | _rounded(
                asdict(
                    paired_bootstrap(
                        measured[model][frames].matches,
                        measured[baseline][frames].matches,
                        group_frames(ground_truth[frames]),
                        seed=seed,
                        resamples=resamples,
                    )
                )
            )
            for model, baseline in comparisons
            for frames in measured[model]
            if frames in measured[baseline] and measured[model][frames].ap50 is not None
        ],
    }


def _entry(metrics: Metrics, ground_truth: GroundTruth) -> dict[str, Any]:
    entry = {
        "ap50": metrics.ap50,
        "map": metrics.map,
        "images": metrics.images,
        "per_class": {name: found.ap50 for name, found in metrics.per_class.items()},
        "per_class_map": {name: found.ap for name, found in metrics.per_class.items()},
        "objects": {name: found.objects for name, found in metrics.per_class.items()},
        "best_f1": {name: asdict(point) for name, point in best_f1(metrics.matches).items()},
        "per_recording": _per_recording(metrics.matches, ground_truth),
    }
    rounded: dict[str, Any] = _rounded(
        entry | ({"left_out": dict(ground_truth.left_out)} if ground_truth.left_out else {})
    )
    return rounded


def _per_recording(matches: Matches, ground_truth: GroundTruth) -> dict[str, dict[str, Any]]:
    """Return AP50, the mean of the classes that a recording has, with its images and objects."""
    recordings = np.array([image.recording for image in ground_truth.images])
    objects = sum(found.objects for found in matches.per_class)
    entries = {}
    for name in dict.fromkeys(recordings.tolist()):
        here = recordings == name
        entries[name] = {
            "ap50": macro(average_precisions(matches, here.astype(np.int64))),
            "images": int(here.sum()),
            "objects": int(np.sum(objects * here)),
        }
    return entries


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(child) for key, child in value.items()}
    return round(value, _DIGITS) if isinstance(value, float) else value
