"""Collection of Python objects from all processes."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

from cahqp.detectors.losses.distributed import world_size

T = TypeVar("T")


def gathered(items: list[T]) -> list[T]:
    """Return the items of all processes in the order of their ranks. Every process must call this equally often."""
    if world_size() == 1:
        return items
    lists: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, items)
    return [item for rank in lists for item in rank]
