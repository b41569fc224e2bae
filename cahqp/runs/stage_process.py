"""Stages as forks of one process that has imported torch and Lightning: imports take longer than a short stage.

Only on Linux, for stages that run one after the other. `fork` after importing torch is safe as long as the process has
neither used a GPU nor started threads, and this process does nothing but import and fork.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cahqp.errors import RunError
from cahqp.runs import process

SERVER = (sys.executable, "-m", "cahqp.cli.stage_server")

_POLL_SECONDS = 0.5
_STOP_SECONDS = 10.0


class StageProcess:
    """The process that forks stages; it starts with the first stage and ends with this process."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None

    def execute(self, arguments: Sequence[str], log: Path, watch: Callable[[float, str], None]) -> int:
        """Run `cahqp` and return its exit code, negative if a signal ended it; as `process.execute`.

        Args:
            arguments: Command line after `cahqp`.
            log: File that its output and errors are appended to.
            watch: Called twice a second with the elapsed seconds and the last line of the log.

        Raises:
            RunError: The log cannot be written, or the process ended unexpectedly.
        """
        began = time.monotonic()
        process.begin_log(log, ["cahqp", *arguments])
        server = self._started(log)
        request = {"arguments": list(arguments), "log": str(log.absolute()), "cwd": str(Path.cwd())}
        child: int | None = None
        try:
            self._send(server, {**request, "environment": dict(os.environ)})
            while True:
                answer = self._receive(server, log)
                if answer is None:
                    watch(time.monotonic() - began, "".join(process.last_lines(log, 1)))
                elif "code" in answer:
                    child = None
                    return int(answer["code"])
                else:
                    child = int(answer["pid"])
        finally:
            if child is not None:
                self._stop(server, child)

    def close(self) -> None:
        """End the process."""
        if self._server is not None and self._server.stdin is not None:
            with suppress(OSError):
                self._server.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(_STOP_SECONDS)
        self._server = None

    def _started(self, log: Path) -> subprocess.Popen[bytes]:
        if self._server is None or self._server.poll() is not None:
            with log.open("ab") as errors:
                self._server = subprocess.Popen(
                    SERVER,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    bufsize=0,  # a line left in a buffer would not wake the selector
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                    preexec_fn=process.die_with_parent,
                )
        return self._server

    def _send(self, server: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
        assert server.stdin is not None
        rest = json.dumps(request).encode() + b"\n"
        while rest:
            rest = rest[server.stdin.write(rest) :]

    def _receive(self, server: subprocess.Popen[bytes], log: Path) -> dict[str, Any] | None:
        """Return the next answer, `None` if there is none within half a second."""
        assert server.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(server.stdout, selectors.EVENT_READ)
            if not selector.select(_POLL_SECONDS):
                return None
        line = server.stdout.readline()
        if not line:
            self._server = None
            message = f"The process that runs the stages ended unexpectedly; {log} may contain the reason. Rerun."
            raise RunError(message)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _stop(self, server: subprocess.Popen[bytes], child: int) -> None:
        """End a stage after an interrupt, and read its exit code, so that the next stage does not receive it."""
        for number, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, _STOP_SECONDS)):
            with suppress(ProcessLookupError):
                os.kill(child, number)
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                if self._receive(server, Path()) is not None:
                    return


SHARED = StageProcess()
atexit.register(SHARED.close)
