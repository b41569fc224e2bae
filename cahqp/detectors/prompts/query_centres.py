"""Running mean of the queries of a visual prompt, which removes what all images have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cahqp.detectors.losses.distributed import sum_over_ranks

MOMENTUM = 0.9
_UNIT = 2**16


class QueryCentres(nn.Module):
    """Running mean of the queries per level, which is subtracted from each query.

    Mean features of day and night have a cosine of 0.8 to 0.94 on the demo's teacher. Without their common part, the
    queries of day and night point in different directions, so that their prompts differ.

    `commit` moves the centres after the step, so that the repetition of a step computes the same. Without calls of
    `commit` the centres stay as they are, as in evaluation.

    Args:
        levels: Number of feature levels.
        dim: Length of a query.

    Attributes:
        values: (levels, dim) int32 centres in units of 2^-16; zero before the first step. They are integer because EMA
            copies integers: an average would lag behind the queries.
    """

    values: Tensor

    def __init__(self, levels: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(levels, dim, dtype=torch.int32))
        self._sums: dict[int, Tensor] = {}  # per level: the number of queries, and their sum

    def forward(self, level: int, queries: Tensor) -> Tensor:
        """Return (B, dim) queries of a level without their centre; in training, add them for `commit`."""
        if self.training:
            seen = queries.detach().float()
            row = torch.cat([seen.new_full((1,), float(len(seen))), seen.sum(0)])
            self._sums[level] = self._sums[level] + row if level in self._sums else row
        return queries - (self.values[level] / _UNIT).to(queries.dtype)

    def commit(self) -> None:
        """Move the centres to the mean query of all processes, or by a share of 0.1 towards it after the first call."""
        if not self._sums:
            return
        sums = sum_over_ranks(torch.stack([self._sums[level] for level in sorted(self._sums)]))
        self._sums = {}
        mean, old = sums[:, 1:] / sums[:, :1], self.values / _UNIT
        new = MOMENTUM * old + (1 - MOMENTUM) * mean if self.values.any() else mean
        self.values.copy_((new * _UNIT).round().int())
