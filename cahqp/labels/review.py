"""Which frames are worth a person's look: those with the most boxes expected to be wrong or missing."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any


class Review:
    """The worst frames seen so far, never more than a fixed number of them.

    Args:
        size: Most frames that are kept.
    """

    def __init__(self, size: int = 1000) -> None:
        self.size = size
        self._heap: list[tuple[float, int, dict[str, Any]]] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Take note of a frame."""
        image = record["image"]
        doubtful = len(record["ignored"])
        told = {key: image[key] for key in ("id", "file_name", "recording", "timestamp", "mistakes") if key in image}
        told |= {"labels": len(record["kept"]), "doubtful": doubtful}
        # Equal frames are parted by their place in the input, so that the list does not depend on the order of work.
        item = (float(image["mistakes"]), -int(record["position"]), told)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, item)
        else:
            heapq.heappushpop(self._heap, item)

    def ranked(self) -> list[dict[str, Any]]:
        """Return the frames, the most doubtful first."""
        return [{"rank": rank, **told} for rank, (_, _, told) in enumerate(sorted(self._heap, reverse=True), 1)]
