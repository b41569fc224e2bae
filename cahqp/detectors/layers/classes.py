"""Class head whose classes may be unions of finer classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ClassHead(nn.Linear):
    """Linear layer with one logit per class. The logit of a union is the largest logit of its members.

    With the largest logit, a merged detector returns exactly the merged detections of its parts. A mean of the members'
    rows would lower the score of a clear car because it is neither a bus nor a truck.

    Args:
        dim: Width of the queries.
        classes: Number of classes.
        members: Rows of the layer that belong to each class, in order; one each by default.

    Raises:
        ValueError: `members` has another length than the classes, or a class has no row.
    """

    def __init__(self, dim: int, classes: int, members: Sequence[int] | None = None) -> None:
        counts = [1] * classes if members is None else list(members)
        if len(counts) != classes or min(counts, default=1) < 1:
            message = f"members must be {classes} numbers of at least 1, one per class, got {counts}."
            raise ValueError(message)
        super().__init__(dim, sum(counts))
        self.members = counts

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., classes) logits for (..., dim)."""
        logits = super().forward(input)
        if len(self.members) == self.out_features:
            return logits
        return torch.stack([rows.amax(-1) for rows in torch.split(logits, self.members, -1)], -1)
