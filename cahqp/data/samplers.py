"""Order of frames as a pure function of seed and epoch, the same for one process and for several."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import DataError

Key = tuple[int, int]
"""Number of the pass over the set, and index of the frame in it. No key occurs twice in a run."""


class Order:
    """Batches of a set of frames, epoch after epoch.

    Passes over the set follow one another, each in a new random order; an epoch is a section of them. So all frames
    occur equally often, whether an epoch is longer or shorter than the set, and none is dropped at its end.

    A step takes `world_size` times `batch_size` frames, and each rank gets its part. Two ranks with `batch_size` b
    together get, in every step, the frames of one rank with 2b.

    Args:
        frames: Number of frames.
        batch_size: Frames in a batch of one rank.
        seed: Seed of the order.
        batches: Batches in an epoch; `None` takes as many as the set fills.
        rank: Part of this process.
        world_size: Number of parts.
        easiness: One value per frame for `curriculum`; larger is easier.
        curriculum: Share of the frames, easiest first, used in epoch 0, 1, ...; the last value holds from then on.
        mixed: Draw the same frames as often as the curriculum does, but in random order (a control experiment).

    Attributes:
        step: Frames of one step, over all ranks.

    Raises:
        DataError: There are too few frames for one step, and `batches` is `None`.
    """

    def __init__(
        self,
        frames: int,
        batch_size: int,
        *,
        seed: int = 0,
        batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        easiness: Sequence[float] | None = None,
        curriculum: Sequence[float] | None = None,
        mixed: bool = False,
    ) -> None:
        self._batch_size = batch_size
        self.step = batch_size * world_size
        if frames == 0 or (batches is None and frames < self.step):
            message = (
                f"{frames} frames are too few for one step of {self.step} "
                f"(batch size {batch_size} on {world_size} device{'s' if world_size > 1 else ''}). Add frames, "
                "lower `batch_size`, or set `batches_per_epoch` to repeat them."
            )
            raise DataError(message)
        self._length = batches or frames // self.step
        self._seed = seed
        self._first = rank * batch_size
        ranked = np.arange(frames) if easiness is None else np.argsort(-np.asarray(easiness), kind="stable")
        self._phases = _phases(ranked, curriculum or [1.0], self._length * self.step)
        self._mixed = self._mix(len(curriculum)) if mixed and curriculum else []

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._length

    def batches(self, start: int = 0) -> Iterator[list[Key]]:
        """Yield as many batches as an epoch has.

        Args:
            start: Number of batches trained on before.
        """
        for number in range(start, start + self._length):
            first = number * self.step + self._first
            if first < len(self._mixed):
                yield self._mixed[first : first + self._batch_size]
                continue
            phase = self._phase(number // self._length)
            draw = first - phase.first_epoch * self._length * self.step
            yield [phase.key(self._seed, draw + offset) for offset in range(self._batch_size)]

    def _mix(self, epochs: int) -> list[Key]:
        """Return the keys of the first epochs over all ranks, in random order."""
        per_epoch = self._length * self.step
        keys = [
            phase.key(self._seed, (epoch - phase.first_epoch) * per_epoch + offset)
            for epoch in range(epochs)
            for phase in [self._phase(epoch)]
            for offset in range(per_epoch)
        ]
        return [keys[index] for index in np.random.default_rng([self._seed, len(keys)]).permutation(len(keys))]

    def _phase(self, epoch: int) -> _Phase:
        return self._phases[bisect_right([phase.first_epoch for phase in self._phases], epoch) - 1]


class _Phase:
    """Consecutive epochs that use the same frames."""

    def __init__(self, first_epoch: int, first_pass: int, pool: NDArray[np.int64]) -> None:
        self.first_epoch = first_epoch
        self.first_pass = first_pass
        self.pool = pool
        self._shuffled: tuple[int, NDArray[np.int64]] = (-1, pool)

    def key(self, seed: int, draw: int) -> Key:
        """Return the key of draw number `draw` of this phase."""
        passes, offset = divmod(draw, len(self.pool))
        number = self.first_pass + passes
        if self._shuffled[0] != number:
            self._shuffled = number, np.random.default_rng([seed, number]).permutation(self.pool)
        return number, int(self._shuffled[1][offset])


def _phases(ranked: NDArray[np.int64], curriculum: Sequence[float], draws: int) -> list[_Phase]:
    """Return the phases of a curriculum; no two share a pass.

    Args:
        ranked: Indices of the frames, easiest first.
        curriculum: Share of the frames by epoch.
        draws: Frames drawn in an epoch.
    """
    phases: list[_Phase] = []
    for epoch, share in enumerate(curriculum):
        pool = ranked[: max(1, round(share * len(ranked)))]
        if not phases:
            phases.append(_Phase(epoch, 0, pool))
        elif len(pool) != len(phases[-1].pool):
            last = phases[-1]
            passes = -(-(epoch - last.first_epoch) * draws // len(last.pool))
            phases.append(_Phase(epoch, last.first_pass + passes, pool))
    return phases


def contiguous_batches(frames: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """Return every frame once, in order; each rank has a contiguous part, and all have the same number of batches.

    If the parts differ in length, some batches are one frame shorter or longer. Ranks with different numbers of steps
    would wait for one another for ever, and a repeated frame would count twice.

    Args:
        frames: Number of frames.
        batch_size: Frames in a batch.
        rank: Part of this process.
        world_size: Number of parts.

    Raises:
        DataError: There are fewer frames than ranks.
    """
    if frames < world_size:
        message = (
            f"{frames} held-out frames cannot be shared between {world_size} devices. "
            "Lower `trainer.devices`, or add frames."
        )
        raise DataError(message)
    parts = np.array_split(np.arange(frames), world_size)
    count = min(-(-len(parts[0]) // batch_size), len(parts[-1]))
    return [batch.tolist() for batch in np.array_split(parts[rank], count)]
