"""Loaders whose order is known beforehand, so that training can go on where it was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from cahqp.data.datasets import LabelledFrames, Sample
from cahqp.data.images import Quarantine
from cahqp.data.samplers import Key, Order
from cahqp.errors import ConfigError, DataError
from cahqp.structures import Batch, collate

Position = Callable[[], int]
"""Says how many batches have been trained on since the run began."""


class Loader:
    """Batches from worker processes, with the broken images among them accounted for.

    No `DataLoader` itself, so that Lightning puts no sampler of its own in: ranks are shared out here already.

    Args:
        dataset: Asked for what the batches name.
        batches: What each batch asks for; gone through anew for each epoch.
        collate: Makes a batch of what the dataset returned; `None` leaves the batch out.
        quarantines: Checked after each batch.
        workers: Number of worker processes; 0 loads in this one.
        begin: Called when an epoch begins, before anything is fetched.
        identity: What an interrupted run must have in common with the one that goes on.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batches: Iterable[Sequence[Any]],
        collate: Callable[[list[Any]], Any],
        *,
        quarantines: Sequence[Quarantine],
        workers: int = 0,
        begin: Callable[[], None] | None = None,
        identity: dict[str, int] | None = None,
    ) -> None:
        self._quarantines = quarantines
        self._begin = begin
        self._identity = identity or {}
        self._loader = DataLoader(
            dataset,
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
        )

    def __len__(self) -> int:
        """Return the number of batches in an epoch, those left out on resuming included."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """Go through the batches of the next epoch.

        Nothing happens before the first batch is asked for: Lightning takes an iterator to count the steps of a run
        before it has restored where that run stands, and goes through that one later.
        """
        if self._begin is not None:
            self._begin()
        yield from self._checked(iter(self._loader))

    def _checked(self, batches: Iterator[Any]) -> Iterator[Any]:
        try:
            for batch in batches:
                self._check()
                if batch is not None:
                    yield batch
        except DataError:
            # What a worker raises arrives wrapped in its traceback; from the marks the same is told in one message.
            self._check()
            raise

    def _check(self) -> None:
        for quarantine in self._quarantines:
            quarantine.check()

    def close(self) -> None:
        """End the worker processes. Left to the garbage collector they outlive the run that failed."""
        running = self._loader._iterator
        self._loader._iterator = None
        if isinstance(running, _MultiProcessingDataLoaderIter):
            running._shutdown_workers()  # what Lightning calls for loaders that are a `DataLoader`

    def state_dict(self) -> dict[str, int]:
        """Return what the order of the batches depends on. How far they were gone through, Lightning knows."""
        return self._identity

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Check that an interrupted epoch goes on in the order in which it began.

        Raises:
            ConfigError: Something that the order depends on is another than before.
        """
        changed = [name for name in state if state[name] != self._identity.get(name)]
        if changed:
            was = ", ".join(f"{name} was {state[name]} and is {self._identity.get(name)}" for name in changed)
            message = (
                f"The interrupted run cannot be resumed in the middle of an epoch: {was}. Resume with the same data "
                "settings, or start a new run from its weights."
            )
            raise ConfigError(message)


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism; OpenCV's own threads would only fight over the cores


def training_loader(
    parts: Sequence[tuple[Dataset[Any], Order]],
    collate: Callable[[list[list[Any]]], Any],
    *,
    position: Position | None,
    quarantines: Sequence[Quarantine],
    workers: int,
    identity: dict[str, int],
) -> Loader:
    """Load batches that take so many frames of each of several sets.

    Args:
        parts: The sets and their orders, which have equally many batches.
        collate: Makes a batch of the samples of each set.
        position: Where training stands, asked whenever an epoch begins; epoch follows epoch where `None`.
        quarantines: Checked after each batch.
        workers: Number of worker processes.
        identity: What the order depends on.
    """
    batches = _Batches([order for _, order in parts], position)
    return Loader(
        _Parts([dataset for dataset, _ in parts]),
        batches,
        _ByPart(collate, len(parts)),
        quarantines=quarantines,
        workers=workers,
        begin=batches.begin,
        identity=identity,
    )


def exact_loader(dataset: LabelledFrames, batches: Sequence[list[int]], workers: int) -> Loader:
    """Load frames to measure on: each once, in order, without the broken ones.

    Args:
        dataset: The frames.
        batches: Positions that make up each batch.
        workers: Number of worker processes.
    """
    return Loader(_Exact(dataset), batches, _collate_healthy, quarantines=[dataset.quarantine], workers=workers)


class _Parts(Dataset[tuple[int, Any]]):
    def __init__(self, datasets: Sequence[Dataset[Any]]) -> None:
        self._datasets = datasets

    def __getitem__(self, item: tuple[int, Key]) -> tuple[int, Any]:
        part, key = item
        return part, self._datasets[part][key]


class _ByPart:
    """Sort the samples of a batch by the set they are from. A class, because a worker may have to be sent it."""

    def __init__(self, collate: Callable[[list[list[Any]]], Any], count: int) -> None:
        self._collate = collate
        self._count = count

    def __call__(self, samples: list[tuple[int, Any]]) -> Any:
        return self._collate([[sample for part, sample in samples if part == n] for n in range(self._count)])


class _Exact(Dataset[Sample | None]):
    def __init__(self, dataset: LabelledFrames) -> None:
        self._dataset = dataset

    def __getitem__(self, position: int) -> Sample | None:
        return self._dataset.exact(position)


def _collate_healthy(samples: list[Sample | None]) -> Batch | None:
    healthy = [sample for sample in samples if sample is not None]
    return collate(healthy) if healthy else None


class _Batches:
    """The batches of the epoch that is next, from where training stands."""

    def __init__(self, orders: Sequence[Order], position: Position | None) -> None:
        self._orders = orders
        self._position = position
        self._start = -len(self)

    def begin(self) -> None:
        """Ask where training stands. Not in `__iter__`, which a `DataLoader` with workers calls twice."""
        self._start = self._position() if self._position is not None else self._start + len(self)

    def __len__(self) -> int:
        return len(self._orders[0])

    def __iter__(self) -> Iterator[list[tuple[int, Key]]]:
        for step in zip(*(order.batches(self._start) for order in self._orders), strict=True):
            yield [(part, key) for part, keys in enumerate(step) for key in keys]
