"""Two-sample test of sets of frames: MK-MMD with blocks of consecutive frames, which are not independent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Bandwidths of the averaged kernels, as multiples of the median squared distance."""

_MAX_FRAMES = 2000  # frames for the median distance
_MIN_SPREAD = 0.25  # smallest spread of a value, as a share of the mean spread: dead features would dominate


@dataclass(frozen=True)
class Scale:
    """Scale of values, from a reference.

    Attributes:
        centre: (D,) means.
        spread: (D,) standard deviations, bounded from below by a share of their mean.
        bandwidth: Median squared distance between two frames of the reference.
    """

    centre: Array
    spread: Array
    bandwidth: float

    def apply(self, values: NDArray[np.float32]) -> Array:
        """Return (N, D) values in units of the reference's spread."""
        scaled: Array = (values.astype(np.float64) - self.centre) / self.spread
        return scaled


def fit_scale(values: NDArray[np.float32]) -> Scale:
    """Return the scale of (N, D) reference values with at least two rows."""
    wide = values.astype(np.float64)
    spread = wide.std(0)
    floor = max(float(spread.mean()) * _MIN_SPREAD, 1e-6)
    scale = Scale(wide.mean(0), np.maximum(spread, floor), 1.0)
    rows = np.linspace(0, len(wide) - 1, min(len(wide), _MAX_FRAMES)).astype(int)
    distances = squared_distances(scale.apply(values[rows]))
    return Scale(scale.centre, scale.spread, max(float(np.median(distances[np.triu_indices(len(rows), 1)])), 1e-6))


def squared_distances(values: Array, others: Array | None = None) -> Array:
    """Return (N, M) squared distances between rows."""
    others = values if others is None else others
    norms = (values**2).sum(1)[:, None] + (others**2).sum(1)[None]
    distances: Array = np.maximum(norms - 2 * values @ others.T, 0.0)
    return distances


def kernel(values: Array, bandwidth: float, others: Array | None = None) -> Array:
    """Return (N, M) means of Gaussian kernels, in 0..1 (MK-MMD; Gretton et al., NeurIPS 2012, with equal weights).

    Args:
        values: (N, D) scaled values.
        bandwidth: Median squared distance.
        others: (M, D) scaled values. Default: `values`.
    """
    distances = squared_distances(values, others)
    total: Array = sum((np.exp(-distances / (factor * bandwidth)) for factor in FACTORS), np.zeros_like(distances))
    return total / len(FACTORS)


def distance(first: NDArray[np.float32], second: NDArray[np.float32], scale: Scale) -> float:
    """Return the unbiased squared MK-MMD between two sets: about zero, or negative, for equal distributions."""
    a, b = scale.apply(first), scale.apply(second)
    within = _off_diagonal(kernel(a, scale.bandwidth)) + _off_diagonal(kernel(b, scale.bandwidth))
    return float(within - 2 * kernel(a, scale.bandwidth, b).mean())


def _off_diagonal(gram: Array) -> float:
    count = len(gram)
    return float((gram.sum() - np.trace(gram)) / max(count * (count - 1), 1))


def blocks(recordings: list[str], length: int) -> NDArray[np.int64]:
    """Return (N,) numbers of blocks of consecutive frames. No block spans two recordings.

    Args:
        recordings: Name of each frame's recording, in order of time.
        length: Frames in a block. The remaining frames of a recording join its last block.
    """
    numbers = np.zeros(len(recordings), np.int64)
    starts = [row for row in range(len(recordings)) if row == 0 or recordings[row] != recordings[row - 1]]
    count = 0
    for start, end in zip(starts, [*starts[1:], len(recordings)], strict=True):
        parts = max((end - start) // length, 1)
        numbers[start:end] = count + np.minimum(np.arange(end - start) // length, parts - 1)
        count += parts
    return numbers


@dataclass(frozen=True)
class MmdResult:
    """Result of a window's test against a reference.

    Attributes:
        distance: Unbiased squared MK-MMD.
        p: P-value of the block permutation test, 0..1.
        limit: Largest distance of the reference's own windows, plus a margin.
    """

    distance: float
    p: float
    limit: float

    def over(self, alpha: float) -> bool:
        """Return whether the window has another distribution: significant at `alpha`, and farther than the limit."""
        return self.p <= alpha and self.distance > self.limit


class Reference:
    """Reference frames that windows are tested against.

    A permutation test assumes exchangeable blocks, but traffic comes in waves: the frames of a one-minute window are
    more similar than random blocks. Therefore each window of the reference is also compared with the rest of it, and a
    tested window must exceed the largest of these distances.

    Args:
        values: (N, D) values of one kind of signal.
        groups: (N,) block numbers, from `blocks`.
        window: Blocks in a window.
        margin: Distance of the limit above the reference's largest distance, as a share of the difference between the
            largest and the median one.
    """

    def __init__(self, values: NDArray[np.float32], groups: NDArray[np.int64], window: int, margin: float) -> None:
        self.scale = fit_scale(values)
        self._values = self.scale.apply(values)
        self._groups = groups
        self.count = int(groups.max()) + 1
        sums, pairs = _between(kernel(self._values, self.scale.bandwidth), groups, groups)
        self._sums, self._pairs = sums, pairs
        usual = self._usual(window)
        self.limit = float(usual.max() + margin * max(usual.max() - np.median(usual), 0.0))

    def test(
        self, values: NDArray[np.float32], groups: NDArray[np.int64], random: np.random.Generator, permutations: int
    ) -> MmdResult:
        """Compare a window with the reference.

        Args:
            values: (M, D) values of the same kind of signal.
            groups: (M,) block numbers, from `blocks`.
            random: Generator of the permutations.
            permutations: Number of permutations.
        """
        scaled = self.scale.apply(values)
        cross, cross_pairs = _between(
            kernel(self._values, self.scale.bandwidth, scaled), self._groups, groups
        )  # fmt: skip
        own, own_pairs = _between(kernel(scaled, self.scale.bandwidth), groups, groups)
        sums = np.block([[self._sums, cross], [cross.T, own]])
        pairs = np.block([[self._pairs, cross_pairs], [cross_pairs.T, own_pairs]])
        total, size = len(sums), len(own)
        chosen = np.zeros((permutations + 1, total))
        chosen[0, self.count :] = 1
        order = random.permuted(np.tile(np.arange(total), (permutations, 1)), axis=1)[:, :size]
        np.put_along_axis(chosen[1:], order, 1, axis=1)
        distances = _distances(chosen, sums, pairs)
        rank = 1 + int((distances[1:] >= distances[0]).sum())
        return MmdResult(float(distances[0]), rank / (permutations + 1), self.limit)

    def _usual(self, window: int) -> Array:
        """Return the distance of each run of `window` consecutive blocks from the other blocks."""
        starts = np.arange(self.count - window + 1)
        chosen = np.zeros((len(starts), self.count))
        np.put_along_axis(chosen, starts[:, None] + np.arange(window), 1, axis=1)
        return _distances(chosen, self._sums, self._pairs)


def _between(gram: Array, first: NDArray[np.int64], second: NDArray[np.int64]) -> tuple[Array, Array]:
    """Return the sum of a kernel over each pair of blocks, and the number of pairs of frames in it."""
    rows, columns = (np.eye(int(g.max()) + 1)[g] for g in (first, second))
    pairs: Array = np.outer(rows.sum(0), columns.sum(0))
    sums: Array = rows.T @ gram @ columns
    return sums, pairs


def _distances(chosen: Array, sums: Array, pairs: Array) -> Array:
    """Return the squared MK-MMD of each split of blocks in two, without pairs of frames in one block.

    Args:
        chosen: (P, N) indicators of the first part.
        sums: (N, N) sums of the kernel between blocks.
        pairs: (N, N) numbers of pairs of frames.
    """
    others = 1 - chosen
    sums, pairs = (x * (1 - np.eye(len(x))) for x in (sums, pairs))
    inside, outside = chosen @ sums, others @ sums
    inside_pairs, outside_pairs = chosen @ pairs, others @ pairs

    def mean(total: Array, count: Array, mask: Array) -> Array:
        part: Array = (total * mask).sum(1) / np.maximum((count * mask).sum(1), 1)
        return part

    within = mean(inside, inside_pairs, chosen) + mean(outside, outside_pairs, others)
    return within - 2 * mean(inside, inside_pairs, others)
