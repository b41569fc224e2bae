"""What all processes saw in a step."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gathered(items: list[T]) -> list[T]:
    """Return the items of all processes, in the order of their ranks. Every process must call this equally often."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return items
    lists: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(lists, items)
    return [item for rank in lists for item in rank]
