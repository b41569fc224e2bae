"""Time and memory of ways to do one thing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Times:
    """Seconds of each run.

    Attributes:
        seconds: By way, in the order of the rounds.
        order: Which way each run was, as they followed one another.
    """

    seconds: dict[str, list[float]]
    order: list[str]

    def median(self, way: str) -> float:
        """Return the median of a way's seconds."""
        return statistics.median(self.seconds[way])

    def ratio(self, slow: str, fast: str) -> dict[str, float]:
        """Return how many times longer one way took than another: the least, the median and the most of all rounds."""
        found = [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]
        return {"min": min(found), "median": statistics.median(found), "max": max(found)}


def alternate(ways: Mapping[str, Any], rounds: int, device: torch.device) -> Times:
    """Time ways by turns, so that what else a machine does meets all of them.

    Args:
        ways: `Way` by name; each is run once before anything counts.
        rounds: Times each is run.
        device: Waited for after every run.
    """
    for way in ways.values():
        way.prepare()
        way.run()
    times = Times({name: [] for name in ways}, [])
    for _ in range(rounds):
        for name, way in ways.items():
            way.prepare()
            times.seconds[name].append(timed(way.run, device))
            times.order.append(name)
    return times


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of one run, the device's work included."""
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(run: Callable[[], Any], device: torch.device) -> int | None:
    """Return the bytes that a run takes at its highest beyond what was taken before it.

    On CUDA what tensors take; else what the process takes, which needs Linux, and a process in which nothing of the
    kind ran before, for freed memory is not given back; `None` where it cannot be told.
    """
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not _REFS.exists():
        return None
    _REFS.write_text("5")  # the highest so far is forgotten (Linux, Documentation/filesystems/proc)
    before = _kilobytes("VmRSS")
    run()
    return (_kilobytes("VmHWM") - before) * 1024


def _kilobytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    message = f"{_STATUS} has no {name}."
    raise OSError(message)
