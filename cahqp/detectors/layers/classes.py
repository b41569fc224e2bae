"""The head that tells classes, whose classes may be unions of finer ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ClassHead(nn.Linear):
    """A linear layer with one logit per class. A class that is a union scores as the best of its members.

    The largest logit, and not a mean of the members' rows: a mean scores a sure car by what speaks against bus and
    truck too, while with the largest a merged detector answers exactly what merging the answers of its parts would.

    Args:
        dim: Width of the queries.
        classes: Number of classes.
        members: Rows of the layer that belong to each class, in order; one each where not given.

    Raises:
        ValueError: `members` has another length than the classes, or a class without a row.
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
