"""Subprocesses with log files."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cahqp.errors import RunError
from cahqp.files import redact_url

_POLL_SECONDS = 0.5
_STOP_SECONDS = 10.0
_TAIL_BYTES = 16_384
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def execute(command: Sequence[str], log: Path, watch: Callable[[float, str], None]) -> int:
    """Run a command and return its exit code, negative if a signal ended it.

    Args:
        command: Program and arguments.
        log: File that its output and errors are appended to.
        watch: Called twice a second with the elapsed seconds and the last line of the log.

    Raises:
        RunError: The log cannot be written.
    """
    began = time.monotonic()
    begin_log(log, command)
    with log.open("ab") as file:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            preexec_fn=die_with_parent if _LIBC else None,
        )
    try:
        while True:
            try:
                return child.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                watch(time.monotonic() - began, "".join(last_lines(log, 1)))
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def begin_log(log: Path, command: Sequence[str]) -> None:
    """Append a command to a log.

    Raises:
        RunError: The log cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(map(redact_url, command))}\n".encode())
    except OSError as error:
        message = f"{log} cannot be written ({error.strerror}). Free some space or fix its permissions, then rerun."
        raise RunError(message) from error


def last_lines(log: Path, count: int, start: int = 0) -> list[str]:
    """Return up to `count` last non-empty lines after byte `start` of a log, as a terminal shows them."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    # A progress bar overwrites itself: its last state counts.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    plain = [_TERMINAL_CODES.sub("", line).rstrip() for line in lines]
    return [line for line in plain if line][-count:]


def in_words(code: int) -> str:
    """Return an exit code as text."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name}, as when the machine has run out of memory" if name == "SIGKILL" else name


def die_with_parent() -> None:
    """Let this process end with its parent, on Linux: a killed cycle leaves no stage behind that keeps writing."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
