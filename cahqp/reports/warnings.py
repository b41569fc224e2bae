"""Warnings of a report: classes whose labels collapse, and models that detect next to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cahqp.reports.accuracy import model_title

MIN_LABELS = 20
"""Fewer labels of a class before adaptation are too few to call their loss a collapse."""

COLLAPSE = 0.2
"""Share of a class's labels that must remain after adaptation."""

MIN_AP50 = 0.02
"""A model below this AP50 detects next to nothing."""


def collect_warnings(labels: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each problem, for the head of the report.

    Args:
        labels: Result of `compare_labels`, or empty.
        metrics: Content of `metrics.json`, or empty.
    """
    return _collapsed(labels) + _lost(labels, metrics) + _blind(metrics)


def _collapsed(labels: Mapping[str, Any]) -> list[str]:
    rows = labels.get("kept", [])
    warnings = []
    if rows and not any(row[-1] for row in rows):
        warnings.append("The label file contains no labels. The student cannot learn the new conditions.")
    pairs = [row for row in rows if len(row) == 3]
    before, after = ({row[0]: row[column] for row in pairs} for column in (1, 2))
    return warnings + collapsed_classes(before, after, "with adaptation")


def collapsed_classes(before: Mapping[str, int], after: Mapping[str, int], where: str) -> list[str]:
    """Return one sentence for each class that loses most of its labels.

    Args:
        before: Number of labels by class name.
        after: The same, later.
        where: Words that name the change, such as `with adaptation`.
    """
    return [
        f"Labels of {name} collapse from {count:,} to {after.get(name, 0):,} {where}. Check the frames below."
        for name, count in before.items()
        if count >= MIN_LABELS and after.get(name, 0) < COLLAPSE * count
    ]


def _lost(labels: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each class without labels that has many objects in the source's validation frames."""
    sets: Mapping[str, Any] = next(iter(metrics.get("models", {}).values()), {})
    objects = sets.get("source-val", {}).get("objects", {})
    rows = labels.get("kept", [])
    lost = [row[0] for row in rows if not any(row[1:]) and any(row[-1] for row in rows)]
    return [
        f"{name} has {objects[name]:,} objects in source validation and no label. The student forgets this class."
        for name in lost
        if objects.get(name, 0) >= MIN_LABELS
    ]


def _blind(metrics: Mapping[str, Any]) -> list[str]:
    return [
        f"{model_title(model)} detects next to nothing on {frames}: AP50 {100 * entry['ap50']:.1f} %."
        for model, sets in metrics.get("models", {}).items()
        for frames, entry in sets.items()
        if entry["ap50"] is not None and entry["ap50"] < MIN_AP50
    ]
