"""Benchmark results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cahqp.benchmarks.adapt.plan import CA_HQP, MEAN_TEACHER, SOURCE_ONLY, ZERO_SHOT
from cahqp.benchmarks.markdown import render
from cahqp.evaluation.seeds import MIN_SEEDS

_OLDER: dict[str, Any] = {
    "source_weights": None,
    "min_objects": 1,
    "left_out": {},
    "margin": None,
    "commit": None,
    "dirty": None,
}
"""Keys that results of older versions lack."""


def markdown(results: Mapping[str, Any]) -> str:
    """Return the section of one benchmark from the content of its `results.json`."""
    against, over_zero_shot = (
        {each["arm"]: each for each in results["differences"] if each["baseline"] == baseline}
        for baseline in (MEAN_TEACHER, ZERO_SHOT)
    )
    images = {name: arm["images"] for name, arm in results["arms"].items()}
    context = {
        "against": against,
        "over_zero_shot": over_zero_shot,
        "terms": against.get(CA_HQP),
        "drops": {name: _source_drop(results["arms"], name) for name in results["order"]},
        "readers": ["the evaluation", "the oracles", *results["ground_truth"]],
        "min_seeds": MIN_SEEDS,
        "most_images": max(images.values()),
    }
    return render("adapt.md.j2", _OLDER | {**results, **context})


def _source_drop(arms: Mapping[str, Any], name: str) -> str:
    before, after = (arms[arm]["source_ap50"]["mean"] for arm in (SOURCE_ONLY, name))
    return "-" if before is None or after is None or name == SOURCE_ONLY else f"{100 * (before - after):+.1f}"
