"""One process at a time for one output directory."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from cahqp.errors import RunError

# Processes of a run that was just killed need a moment to be gone, and `is_held` looks by locking for a moment.
GRACE_SECONDS = 1.0

_held: dict[Path, int] = {}


def acquire(output: Path) -> None:
    """Hold `<output>.lock` until `release` or the end of this process, however it ends.

    A process that holds it already keeps it: a run that failed can be begun again where it was called.

    Raises:
        RunError: Another process holds it, or the file cannot be made.
    """
    path = lock_path(output)
    if path in _held:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _held[path] = _lock_patiently(path)
    except BlockingIOError as error:
        message = (
            f"{output} is being made by another process ({_holder(path)}). Wait for it, or stop it, and try again."
        )
        raise RunError(message) from error
    except OSError as error:
        message = f"{path} cannot be written ({error.strerror}). Choose another --output or mend its permissions."
        raise RunError(message) from error


def release(output: Path) -> None:
    """Let the next process have `output`. Nothing happens where this process does not hold it."""
    path = lock_path(output)
    descriptor = _held.pop(path, None)
    if descriptor is not None:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def is_held(output: Path) -> bool:
    """Say whether some other process is at work on `output`."""
    path = lock_path(output)
    if path in _held or not path.exists():
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False  # released in this very moment
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def lock_path(output: Path) -> Path:
    """Return the lock's file beside `output`."""
    return output.absolute().with_name(f"{output.name}.lock")


def _lock_patiently(path: Path) -> int:
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        try:
            return _lock(path)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        # Its last holder removed the file between our opening and locking it: what we hold guards nothing.
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text() or "its lock names none"
    except OSError:
        return "it has just ended"


def _forget_in_child() -> None:
    # A forked data worker that outlives a killed run must not keep the lock: `flock` belongs to the open file.
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
