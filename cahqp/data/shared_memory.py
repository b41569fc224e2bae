"""Check of the shared memory that worker processes pass images through."""

from __future__ import annotations

import shutil
from pathlib import Path

from cahqp.errors import ConfigError

MIN_BYTES = 32 * 2**20
"""Smallest free space: less than a few images, and loading would hang instead of failing."""

_SHARED = Path("/dev/shm")


def check_shared_memory(workers: int, folder: Path = _SHARED) -> None:
    """Check that worker processes can pass images.

    Args:
        workers: Number of worker processes; 0 needs no shared memory.
        folder: Mount of the shared memory.

    Raises:
        ConfigError: It has less than 32 MiB free.
    """
    if workers == 0 or not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free
    if free < MIN_BYTES:
        message = (
            f"{folder} has {free / 2**20:.1f} MiB free, but {workers} worker processes pass images through it. Start "
            "the container with more, such as `docker run --shm-size 2g`, or set `workers` to 0."
        )
        raise ConfigError(message)
