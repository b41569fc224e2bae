"""Locks of output directories: one process at a time writes into a directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cahqp.errors import RunError
from cahqp.files import disk_trouble

# Processes of a killed run need a moment to end, and `is_held` takes the lock for a moment.
GRACE_SECONDS = 1.0

_held: dict[Path, int] = {}


@contextmanager
def hold(output: Path) -> Iterator[None]:
    """Hold the lock of `output` during a block.

    Raises:
        RunError: As `acquire`.
    """
    acquire(output)
    try:
        yield
    finally:
        release(output)


def acquire(output: Path) -> None:
    """Hold `<output>.lock` until `release` or the end of this process. If this process already holds it, it keeps it.

    Raises:
        RunError: Another process holds the lock, or the file cannot be written.
    """
    path = lock_path(output)
    if path in _held:
        return
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while path not in _held:
            try:
                _held[path] = _lock(path)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)
    except BlockingIOError as error:
        message = f"{output} is in use by another process ({_holder(path)}). Wait for it or stop it, then rerun."
        raise RunError(message) from error
    except OSError as error:
        message = (
            disk_trouble(error)
            or f"{path} cannot be written ({error.strerror}). Choose another --output or fix its permissions."
        )
        raise RunError(message) from error


def release(output: Path) -> None:
    """Release the lock of `output`, if this process holds it."""
    path = lock_path(output)
    descriptor = _held.pop(path, None)
    if descriptor is not None:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def is_held(output: Path) -> bool:
    """Return whether another process holds the lock of `output`."""
    path = lock_path(output)
    if path in _held or not path.exists():
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False  # released since the check
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def lock_path(output: Path) -> Path:
    """Return the lock file, which is beside `output`."""
    return output.absolute().with_name(f"{output.name}.lock")


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # If the last holder removed the file since it was opened, this lock guards nothing.
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
                return descriptor
        except FileNotFoundError:
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _holder(path: Path) -> str:
    try:
        return path.read_text() or "its lock names no process"
    except OSError:
        return "it has just ended"


def _forget_in_child() -> None:
    # A forked data worker that outlives a killed run must not keep the lock: `flock` belongs to the open file.
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
