"""Options of `cahqp repair-labels`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Repair = Literal["class", "missed", "false-positive", "box"]


@dataclass(frozen=True, kw_only=True)
class RepairOptions:
    """Repair one type of error in labels from ground truth, to measure how much retraining would gain without it.

    An analysis tool: it reads ground truth of the target. A model trained on the result, or on a model that was, is
    refused by `cahqp export` and `cahqp publish`.

    Attributes:
        labels: Directory of `cahqp relabel`, or a COCO file of labels.
        ground_truth: COCO file with ground truth for the same images, matched by name.
        fix: Errors to repair. `class`: wrong classes; `missed`: missing objects are added; `false-positive`: labels
            without an object of their own are removed; `box`: labels receive the exact boxes of their objects.
        output: New directory for `labels.json`. It is never overwritten.
    """

    labels: Path
    ground_truth: Path
    fix: Repair
    output: Path
