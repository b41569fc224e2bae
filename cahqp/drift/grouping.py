"""Groups of cameras with similar drift, which one adaptation can serve (as in ECCO, arXiv 2512.11727)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from cahqp.drift.mmd import fit_scale
from cahqp.drift.signals import Signals

MIN_COSINE = 0.5
"""Smallest cosine between the changes of cameras in one group; 60 degrees."""


@dataclass(frozen=True)
class Change:
    """Change of a camera's frames from its reference.

    Attributes:
        direction: (D,) unit vector of the change of the mean features, in units of the reference's spread. Cameras
            share the direction of a change but not the position, because their backgrounds differ.
    """

    direction: NDArray[np.float64]

    @classmethod
    def between(cls, reference: Signals, latest: Signals) -> Self:
        """Return the change from reference frames to a camera's latest frames."""
        before, after = (np.hstack([s.features, s.plain[:, :3]]) for s in (reference, latest))
        change = fit_scale(before).apply(after).mean(0)
        return cls(change / max(float(np.linalg.norm(change)), 1e-12))


def groups(changes: dict[str, Change]) -> list[list[str]]:
    """Return groups of camera names by average linkage of the cosines between their changes; all lists are sorted."""
    names = sorted(changes)
    if len(names) < 2:
        return [names] if names else []
    directions = np.stack([changes[name].direction for name in names])
    distances = np.clip(1 - directions @ directions.T, 0, 2)[np.triu_indices(len(names), 1)]
    numbers = fcluster(linkage(distances, "average"), 1 - MIN_COSINE, "distance")
    return sorted([name for name, n in zip(names, numbers, strict=True) if n == number] for number in set(numbers))
