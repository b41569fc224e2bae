"""Loaders with a predictable order, so that training can resume in the middle of an epoch."""

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
from cahqp.data.shared_memory import check_shared_memory
from cahqp.errors import ConfigError, DataError
from cahqp.structures import Batch, collate

Position = Callable[[], int]
"""Returns the number of batches trained on since the run began."""


class Loader:
    """Batches from worker processes, with a check of broken images after each.

    Not a `DataLoader`, so that Lightning does not insert its own sampler: the batches are already divided among ranks.

    Args:
        dataset: Indexed by the entries of a batch.
        batches: Entries of each batch; iterated once per epoch.
        collate: Makes a batch of samples; `None` leaves the batch out.
        quarantines: Checked after each batch.
        workers: Number of worker processes; 0 loads in this process.
        begin: Called when an epoch begins, before anything is loaded.
        identity: Settings that an interrupted run and its continuation must share.
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
        check_shared_memory(workers)
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
        """Return the number of batches in an epoch, including those skipped on resuming."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the next epoch.

        Nothing happens before the first batch is requested. Lightning creates an iterator to count the steps of a run
        before it restores the run's position, and uses that iterator later.
        """
        if self._begin is not None:
            self._begin()
        try:
            for batch in self._loader:
                self._check()
                if batch is not None:
                    yield batch
        except DataError:
            # A worker's error arrives wrapped in its traceback; the marks give the same error as one message.
            self._check()
            raise

    def _check(self) -> None:
        for quarantine in self._quarantines:
            quarantine.check()

    def close(self) -> None:
        """End the worker processes. Left to the garbage collector they outlive a failed run."""
        running = self._loader._iterator
        self._loader._iterator = None
        if isinstance(running, _MultiProcessingDataLoaderIter):
            running._shutdown_workers()  # as Lightning does for a `DataLoader`

    def state_dict(self) -> dict[str, int]:
        """Return the settings that decide the order of the batches. Lightning itself stores the position."""
        return self._identity

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Check that an interrupted epoch continues in its order.

        Raises:
            ConfigError: A setting that decides the order has changed.
        """
        changed = [name for name in state if state[name] != self._identity.get(name)]
        if changed:
            changes = ", ".join(f"{name} was {state[name]} and is {self._identity.get(name)}" for name in changed)
            message = (
                f"The interrupted run cannot be resumed in the middle of an epoch: {changes}. Resume with the same "
                "data settings, or start a new run from its weights."
            )
            raise ConfigError(message)


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism; OpenCV's own threads would only compete for the cores


def training_loader(
    parts: Sequence[tuple[Dataset[Any], Order]],
    collate: Callable[[list[list[Any]]], Any],
    *,
    position: Position | None,
    quarantines: Sequence[Quarantine],
    workers: int,
    identity: dict[str, int],
) -> Loader:
    """Return a loader of batches with a fixed number of frames from each of several sets.

    Args:
        parts: Sets and their orders, which have equally many batches.
        collate: Makes a batch of the samples of each set.
        position: Called at the begin of every epoch; `None` counts the epochs instead.
        quarantines: Checked after each batch.
        workers: Number of worker processes.
        identity: Settings that decide the order.
    """
    batches = _Batches([order for _, order in parts], position)
    dataset, by_part = _Parts([dataset for dataset, _ in parts]), _CollateByPart(collate, len(parts))
    return Loader(
        dataset,
        batches,
        by_part,
        quarantines=quarantines,
        workers=workers,
        begin=batches.begin,
        identity=identity,
    )


def exact_loader(dataset: LabelledFrames, batches: Sequence[list[int]], workers: int) -> Loader:
    """Return a loader for evaluation: each frame once, in order, without broken ones.

    Args:
        dataset: The frames.
        batches: Positions of each batch.
        workers: Number of worker processes.
    """
    return Loader(_Exact(dataset), batches, _collate_healthy, quarantines=[dataset.quarantine], workers=workers)


class _Parts(Dataset[tuple[int, Any]]):
    def __init__(self, datasets: Sequence[Dataset[Any]]) -> None:
        self._datasets = datasets

    def __getitem__(self, item: tuple[int, Key]) -> tuple[int, Any]:
        part, key = item
        return part, self._datasets[part][key]


class _CollateByPart:
    """Group the samples of a batch by their set. A class, because a worker may have to receive it by pickle."""

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
    """Batches of the next epoch, from the position of training."""

    def __init__(self, orders: Sequence[Order], position: Position | None) -> None:
        self._orders = orders
        self._position = position
        self._start = -len(self)

    def begin(self) -> None:
        """Read the position. Not in `__iter__`, which a `DataLoader` with workers calls twice."""
        self._start = self._position() if self._position is not None else self._start + len(self)

    def __len__(self) -> int:
        return len(self._orders[0])

    def __iter__(self) -> Iterator[list[tuple[int, Key]]]:
        for step in zip(*(order.batches(self._start) for order in self._orders), strict=True):
            yield [(part, key) for part, keys in enumerate(step) for key in keys]
