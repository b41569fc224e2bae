"""Quarantine for broken images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cahqp.coco.decoding import BrokenImageError
from cahqp.errors import DataError
from cahqp.files import write_json


class Quarantine:
    """Broken images of one set of frames, by position.

    Marks are in shared memory, so that the main process has those of a loader's worker processes.

    Args:
        names: Names of all frames of the set.
        limit: Share of broken frames, 0..1, above which `check` raises.
        read: Decodes the image at a position, or raises BrokenImageError. Called again for the reason of each broken
            frame, because a worker process can only leave a mark.
    """

    def __init__(self, names: Sequence[str], limit: float, read: Callable[[int], Any]) -> None:
        self._names = names
        self._limit = limit
        self._read = read
        self._marks = torch.zeros(len(names), dtype=torch.bool)
        self._marks.share_memory_()  # type: ignore[no-untyped-call]

    def add(self, position: int) -> None:
        """Mark the frame at a position as broken."""
        self._marks[position] = True

    def read(self, position: int) -> Any:
        """Return the image at a position; mark a broken one and return `None`."""
        try:
            return self._read(position)
        except BrokenImageError:
            self.add(position)
            return None

    def healthy(self, position: int) -> tuple[int, Any]:
        """Return the image at a position or, if it is broken, the next one that is not; and its position.

        Raises:
            DataError: The share of broken frames is above the limit, or all are broken.
        """
        for candidate in [*range(position, len(self._names)), *range(position)]:
            if candidate in self:
                continue
            image = self.read(candidate)
            if image is not None:
                return candidate, image
            self.check()
        message = f"None of {len(self._names)} images can be decoded. Check the files."
        raise DataError(message)

    def __contains__(self, position: int) -> bool:
        """Return whether the frame at a position is marked as broken."""
        return bool(self._marks[position])

    def __len__(self) -> int:
        """Return the number of frames marked as broken."""
        return int(self._marks.sum())

    def positions(self) -> list[int]:
        """Return the positions of the frames marked as broken, in order."""
        marked: list[int] = self._marks.nonzero().flatten().tolist()
        return marked

    def entries(self) -> list[dict[str, str]]:
        """Return name and reason of each frame marked as broken, in the order of the set."""
        return [{"file_name": self._names[p], "reason": self._reason(p)} for p in self.positions()]

    def _reason(self, position: int) -> str:
        try:
            self._read(position)
        except BrokenImageError as error:
            return str(error)
        return "could not be decoded at first, but could be later"

    def check(self) -> None:
        """Refuse too many broken frames.

        Raises:
            DataError: The share of broken frames is above the limit.
        """
        count = len(self)
        if count <= self._limit * len(self._names):
            return
        lines = [f"  {entry['file_name']}: {entry['reason']}" for entry in self.entries()[:10]]
        more = [f"  ... and {count - 10} more"] if count > 10 else []
        head = (
            f"{count} of {len(self._names)} images are broken, "
            f"more than the share of {self._limit:g} that `max_invalid_share` allows:"
        )
        remedy = "Restore these files, or raise `max_invalid_share` to continue without them."
        raise DataError("\n".join([head, *lines, *more, remedy]))


def write_quarantine(path: Path, quarantines: Sequence[Quarantine]) -> None:
    """Write the broken images of several sets as `quarantine.json`, unless there are none."""
    entries = [entry for quarantine in quarantines for entry in quarantine.entries()]
    if entries:
        write_json(path, {"images": entries})
