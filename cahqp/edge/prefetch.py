"""Iteration in a background thread, so that reading, inference and writing overlap."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")

_MAX_SHUTDOWN_SECONDS = 1.0


class Prefetch(Generic[T]):
    """Iterable that runs in a thread and hands its items over in order. Use it as a context manager.

    Args:
        items: Iterable to consume in the thread.
        size: Maximum number of waiting items.
        live: Drop the oldest waiting item if the queue is full, so that a camera never waits.

    Attributes:
        dropped: Number of dropped items.
    """

    def __init__(self, items: Iterable[T], size: int = 8, live: bool = False) -> None:
        self.dropped = 0
        self._items = items
        self._live = live
        self._queue: queue.Queue[T | None] = queue.Queue(size)
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="cahqp-prefetch", daemon=True)

    def __enter__(self) -> Iterator[T]:
        """Start the thread and return the items. An exception of the thread is raised after the last item."""
        self._thread.start()
        return self._take()

    def __exit__(self, *_: object) -> None:
        """Stop the thread. A thread blocked by a silent camera is left to end with the process."""
        self._stop.set()
        deadline = time.monotonic() + _MAX_SHUTDOWN_SECONDS
        while self._thread.is_alive() and time.monotonic() < deadline:
            with suppress(queue.Empty):
                self._queue.get_nowait()
            self._thread.join(0.05)

    def _take(self) -> Iterator[T]:
        while (item := self._queue.get()) is not None:
            yield item
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            for item in self._items:
                self._put(item)
                if self._stop.is_set():
                    break
        except BaseException as error:  # noqa: BLE001  raised again in the thread that reads
            self._error = error
        while not self._stop.is_set() and not self._offer(None):
            continue

    def _put(self, item: T) -> None:
        while not self._stop.is_set() and not self._offer(item):
            if self._live:
                with suppress(queue.Empty):
                    self._queue.get_nowait()
                    self.dropped += 1

    def _offer(self, item: T | None) -> bool:
        try:
            self._queue.put(item, timeout=0 if self._live and item is not None else 0.1)
        except queue.Full:
            return False
        return True
