"""Cameras that drift together, so that one adaptation can serve them (ECCO, arXiv 2512.11727, groups by drift too)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from cahqp.drift.mmd import fit_scale
from cahqp.drift.signals import Signals

ALIKE = 0.5
"""Cosine between the changes of two cameras from which on they count as one change; 60 degrees."""


@dataclass(frozen=True)
class Change:
    """How a camera's frames have moved away from what was usual.

    Attributes:
        direction: (D,) unit vector of the mean features' way, in units of the reference's spread. What cameras have in
            common is the way: their places differ, as their backgrounds do.
    """

    direction: NDArray[np.float64]

    @classmethod
    def between(cls, usual: Signals, now: Signals) -> Self:
        """Return the change from a camera's usual frames to its last ones."""
        before, after = (np.hstack([s.features, s.plain[:, :3]]) for s in (usual, now))
        way = fit_scale(before).apply(after).mean(0)
        return cls(way / max(float(np.linalg.norm(way)), 1e-12))


def groups(changes: dict[str, Change]) -> list[list[str]]:
    """Group cameras by average linkage of the cosines between their changes.

    Args:
        changes: By camera.

    Returns:
        Names, each group and the groups sorted.
    """
    names = sorted(changes)
    if len(names) < 2:
        return [names] if names else []
    ways = np.stack([changes[name].direction for name in names])
    apart = np.clip(1 - ways @ ways.T, 0, 2)[np.triu_indices(len(names), 1)]
    numbers = fcluster(linkage(apart, "average"), 1 - ALIKE, "distance")
    return sorted([name for name, n in zip(names, numbers, strict=True) if n == number] for number in set(numbers))
