"""Ranking of frames for review by a person: most wrong or missing boxes expected first."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any


class Review:
    """Frames with the most expected mistakes so far, up to a fixed number.

    Args:
        size: Largest number of frames.
    """

    def __init__(self, size: int = 1000) -> None:
        self.size = size
        self._heap: list[tuple[float, int, dict[str, Any]]] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a frame."""
        image = record["image"]
        entry = {key: image[key] for key in ("id", "file_name", "recording", "timestamp", "mistakes") if key in image}
        entry |= {"labels": len(record["kept"]), "doubtful": len(record["ignored"])}
        # The position decides between equal frames, so that the list does not depend on the order of work.
        item = (float(image["mistakes"]), -int(record["position"]), entry)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, item)
        else:
            heapq.heappushpop(self._heap, item)

    def ranked(self) -> list[dict[str, Any]]:
        """Return the frames, most mistakes first."""
        return [{"rank": rank, **entry} for rank, (_, _, entry) in enumerate(sorted(self._heap, reverse=True), 1)]
