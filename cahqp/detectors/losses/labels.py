"""A check that turns an index error deep in a loss into a message."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cahqp.errors import DataError
from cahqp.structures import Targets


def check_labels(targets: Sequence[Targets], classes: int) -> None:
    """Refuse labels that the detector has no class for.

    Args:
        targets: One per image.
        classes: Number of the detector's classes.

    Raises:
        DataError: A label is negative, or not below `classes`.
    """
    labels = torch.cat([target.labels for target in targets]) if targets else torch.zeros(0)
    if len(labels) and not bool(((labels >= 0) & (labels < classes)).all()):
        wrong = sorted({int(label) for label in labels if not 0 <= int(label) < classes})
        message = (
            f"Targets have the labels {wrong}, but the detector has {classes} classes, 0 to {classes - 1}. "
            "Read the targets with the detector's own classes, or give it theirs."
        )
        raise DataError(message)
