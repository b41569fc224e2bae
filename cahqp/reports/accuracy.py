"""Accuracy of a cycle's models: AP50, gains over their baselines, and AP50 by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cahqp.evaluation.bootstrap import within_chance
from cahqp.reports.inputs import put_first

MODEL_TITLES = {
    "teacher-source": "Teacher, source only",
    "teacher-adapted": "Teacher, adapted",
    "mean-teacher": "Teacher, mean teacher alone",
    "ca-hqp": "Teacher, CA-HQP",
    "oracle": "Teacher, oracle (target labels)",
    "student-old": "Student, before",
    "student-new": "Student, retrained",
}
FRAME_TITLES = {"target-test": "target test", "source-val": "source validation"}
BASELINES = {"student-new": "student-old"}
"""Baseline of a model's gain where it is not the teacher before adaptation."""

OPTIONAL_ARMS = {
    "mean-teacher": "a plain mean teacher",
    "oracle": "the oracle, which is trained on the target's labels",
}

Models = Mapping[str, Mapping[str, Mapping[str, Any]]]


def compare_models(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template's `accuracy` from the content of `metrics.json`; empty without models."""
    models: Models = metrics.get("models", {})
    if not models:
        return {}
    ordered = put_first([name for key in MODEL_TITLES for name in (key, f"teacher-{key}")], models)
    frames = put_first(FRAME_TITLES, [name for sets in models.values() for name in sets])
    titles = {name: FRAME_TITLES.get(name, name) for name in frames}
    images = [f"{titles[name]} ({_first(models, name)['images']} images)" for name in frames]
    return {
        "head": ["AP50 in %", images[0], f"gain on {titles[frames[0]]}", *images[1:]],
        "rows": [
            {
                "title": model_title(model),
                "ap50": [models[model].get(name, {}).get("ap50") for name in frames],
                "gain": _gain(metrics, model, frames[0]),
            }
            for model in ordered
        ],
        "missing": {arm: text for arm, text in OPTIONAL_ARMS.items() if not {arm, f"teacher-{arm}"} & models.keys()},
        "classes": [_by_class({model: models[model] for model in ordered}, name) for name in frames],
    }


def _by_class(models: Models, frames: str) -> dict[str, Any]:
    """Return AP50 by class of each model on one set of frames."""
    measured = {model: sets[frames] for model, sets in models.items() if frames in sets}
    names = list(dict.fromkeys(name for entry in measured.values() for name in entry.get("per_class", {})))
    first = _first(models, frames)
    objects, left_out = first.get("objects", {}), first.get("left_out", {})
    return {
        "title": FRAME_TITLES.get(frames, frames) + (", with the number of objects" if objects else ""),
        "head": [f"{name} ({objects[name]:,})" if name in objects else name for name in names],
        "rows": [
            [model_title(model), *(entry["per_class"].get(name) for name in names)] for model, entry in measured.items()
        ],
        "left_out": ", ".join(f"{name} ({count:,})" for name, count in left_out.items()),
    }


def _first(models: Models, frames: str) -> Mapping[str, Any]:
    return next(sets[frames] for sets in models.values() if frames in sets)


def model_title(model: str) -> str:
    """Return the title of a model in the report."""
    return MODEL_TITLES.get(model) or MODEL_TITLES.get(model.removeprefix("teacher-"), model)


def _gain(metrics: Mapping[str, Any], model: str, frames: str) -> dict[str, str]:
    """Return a model's gain over its baseline in points, its interval and its direction; empty without a baseline.

    The direction is `chance` if the interval contains zero, and `unknown` without an interval.
    """
    models = metrics["models"]
    baseline = BASELINES.get(model) or ("teacher-source" if model_title(model).startswith("Teacher") else "")
    value, reference = (models.get(name, {}).get(frames, {}).get("ap50") for name in (model, baseline))
    if baseline == model or value is None or reference is None:
        return {}
    gain, interval, direction = 100 * (value - reference), "", "unknown"
    for entry in metrics.get("differences", []):
        low, high = entry.get("low"), entry.get("high")
        same = (entry["model"], entry["baseline"], entry["frames"]) == (model, baseline, frames)
        if same and low is not None and high is not None:
            interval = f" [{100 * low:+.1f}, {100 * high:+.1f}]"
            direction = "chance" if within_chance(low, high) else "up" if low > 0 else "down"
    return {"value": f"{gain:+.1f}", "direction": direction, "interval": interval}
