"""Time and peak memory of workloads."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Workload:
    """One implementation of a phase.

    Attributes:
        run: Timed call.
        prepare: Call before each run that is not timed.
    """

    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Times:
    """Durations of alternating runs.

    Attributes:
        seconds: Seconds of each round by workload.
        order: Workload of each run, in order of time.
    """

    seconds: dict[str, list[float]]
    order: list[str]

    def median(self, name: str) -> float:
        """Return the median seconds of a workload."""
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> dict[str, float]:
        """Return minimum, median and maximum over the rounds of one workload's time divided by another's."""
        ratios = [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]
        return {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}


def alternate(workloads: Mapping[str, Workload], rounds: int, device: torch.device) -> Times:
    """Time workloads in alternation, so that other load on the machine affects all of them.

    Args:
        workloads: By name. Each runs once before timing starts.
        rounds: Timed runs of each workload.
        device: Device to synchronize with after each run.
    """
    times = Times({name: [] for name in workloads}, [])
    for counts in [False] + [True] * rounds:
        for name, workload in workloads.items():
            workload.prepare()
            _synchronize(device)
            began = time.perf_counter()
            workload.run()
            _synchronize(device)
            if counts:
                times.seconds[name].append(time.perf_counter() - began)
                times.order.append(name)
    return times


def peak(run: Callable[[], Any], device: torch.device) -> int | None:
    """Return the peak memory of a run in bytes, beyond the memory in use before it.

    On CUDA this is the memory of tensors. Otherwise it is the resident memory of the process, which needs Linux and a
    process without earlier similar work, because freed memory is not returned. `None` where it cannot be measured.
    """
    if device.type == "cuda":
        _synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        _synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not _REFS.exists():
        return None
    _REFS.write_text("5")  # resets VmHWM (Linux, Documentation/filesystems/proc)
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the device, its name, the number of CPU threads and the version of torch."""
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status_bytes(key: str) -> int:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
