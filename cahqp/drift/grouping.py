"""Groups of cameras with similar drift, which one adaptation can serve (as in ECCO, arXiv 2512.11727)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from cahqp.drift.mmd import fit_scale
from cahqp.drift.signals import Signals

MIN_COSINE = 0.5
"""Smallest cosine between the changes of cameras in one group; 60 degrees."""


def change_direction(reference: Signals, latest: Signals) -> NDArray[np.float64]:
    """Return the (D,) unit vector of the change of a camera's mean features, in units of the reference's spread.

    Cameras share the direction of a change but not the position, because their backgrounds differ.
    """
    before, after = (np.hstack([s.features, s.plain[:, :3]]) for s in (reference, latest))
    change: NDArray[np.float64] = fit_scale(before).apply(after).mean(0)
    return change / max(float(np.linalg.norm(change)), 1e-12)


def group_cameras(changes: dict[str, NDArray[np.float64]]) -> list[list[str]]:
    """Return groups of camera names by average linkage of the cosines between their changes; all lists are sorted."""
    names = sorted(changes)
    if len(names) < 2:
        return [names] if names else []
    directions = np.stack([changes[name] for name in names])
    distances = np.clip(1 - directions @ directions.T, 0, 2)[np.triu_indices(len(names), 1)]
    numbers = fcluster(linkage(distances, "average"), 1 - MIN_COSINE, "distance")
    return sorted([name for name, n in zip(names, numbers, strict=True) if n == number] for number in set(numbers))
