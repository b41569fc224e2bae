"""Reductions over all ranks, so that several processes train like one."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        distributed.all_reduce(value)
    return value


def maximum_over_ranks(value: int, device: torch.device) -> int:
    """Return the largest value of all ranks."""
    if world_size() == 1:
        return value
    shared = torch.tensor(value, device=device)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return int(shared)
