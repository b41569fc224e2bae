"""The order of frames as a pure function of seed and epoch, the same for one process and for several."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import DataError

Key = tuple[int, int]
"""How often the whole set has been gone through before, and an index into it. No key comes twice."""


class Order:
    """Batches of a set of frames, epoch after epoch.

    The set is gone through again and again, in a new random order each pass; an epoch is a stretch of that. So every
    frame comes equally often, whether an epoch is longer or shorter than the set, and none is dropped at its end.

    Of the frames of one step, `world_size` times `batch_size`, each rank gets its part: two ranks with `batch_size` b
    see, step for step, the two halves of what one sees with 2b.

    Args:
        frames: Number of frames.
        batch_size: Frames in a batch of one rank.
        seed: Decides the order.
        batches: Batches in an epoch; as many as the set fills where `None`.
        rank: Which part this process gets.
        world_size: Number of parts.
        easiness: One value per frame for `curriculum`; larger is easier.
        curriculum: Share of the frames, easiest first, that are used in epoch 0, 1, ...; the last holds from then on.
        mixed: The control of a curriculum: what its epochs draw is drawn as often, but in an order of chance.

    Attributes:
        step: Frames of one step, over all ranks.

    Raises:
        DataError: There are too few frames for one step, and `batches` does not say to repeat them.
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
                "lower `batch_size`, or set `batches_per_epoch` to go through them several times."
            )
            raise DataError(message)
        self._length = batches or frames // self.step
        self._seed = seed
        self._first = rank * batch_size
        ranked = np.arange(frames) if easiness is None else np.argsort(-np.asarray(easiness), kind="stable")
        self._phases = _phases(ranked, curriculum or [1.0], self._length * self.step)
        self._mixed = self._drawn_by(len(curriculum)) if mixed and curriculum else []

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._length

    def batches(self, start: int = 0) -> Iterator[list[Key]]:
        """Go through as many batches as an epoch has.

        Args:
            start: Number of batches gone through before, in earlier epochs or in this one.
        """
        for number in range(start, start + self._length):
            first = number * self.step + self._first
            if first < len(self._mixed):
                yield self._mixed[first : first + self._batch_size]
                continue
            phase = self._phase(number // self._length)
            draw = first - phase.first_epoch * self._length * self.step
            yield [phase.key(self._seed, draw + place) for place in range(self._batch_size)]

    def _drawn_by(self, epochs: int) -> list[Key]:
        """Return what the first epochs draw over all ranks, in an order of chance."""
        per_epoch = self._length * self.step
        keys = [
            phase.key(self._seed, epoch * per_epoch + place - phase.first_epoch * per_epoch)
            for epoch in range(epochs)
            for phase in [self._phase(epoch)]
            for place in range(per_epoch)
        ]
        return [keys[place] for place in np.random.default_rng([self._seed, len(keys)]).permutation(len(keys))]

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
        """Return what is drawn as number `draw` of this phase."""
        passes, place = divmod(draw, len(self.pool))
        number = self.first_pass + passes
        if self._shuffled[0] != number:
            self._shuffled = number, np.random.default_rng([seed, number]).permutation(self.pool)
        return number, int(self._shuffled[1][place])


def _phases(ranked: NDArray[np.int64], curriculum: Sequence[float], draws: int) -> list[_Phase]:
    """Return the phases of a curriculum, each with passes of its own.

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
    """Return every frame once, in order: each rank has a contiguous part, and all have the same number of batches.

    Where the parts differ in length some batches are one frame shorter or longer: ranks that make different numbers of
    steps wait for one another for ever, and a frame that is repeated counts twice.

    Args:
        frames: Number of frames.
        batch_size: Frames in a batch, as a rule.
        rank: Which part.
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
