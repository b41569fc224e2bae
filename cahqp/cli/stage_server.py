"""Process that imports torch and Lightning once and forks one stage after the other; see `cahqp.runs.stage_process`.

Requests are lines of JSON on standard input, answers lines of JSON on standard output: the process id of a stage, then
its exit code.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from importlib import import_module
from typing import Any

from cahqp.runs.process import die_with_parent

_HEAVY = ("fit", "relabel", "calibrate", "evaluate", "features")
"""Commands that wait for the imports. Others start at once, while this process imports."""

_MODULES = ("cahqp.cli.lightning", "cahqp.relabelling.command", "cahqp.inference.evaluate")


def serve() -> int:
    """Fork the requested stages until standard input ends; return the exit code of this process or of a stage."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt of the terminal is for the stage
    while line := sys.stdin.readline():
        request = json.loads(line)
        if request["arguments"][0] in _HEAVY:
            _import()
        child = os.fork()
        if child == 0:
            answers.close()
            return _run(request)
        _answer(answers, pid=child)
        _import()
        _, status = os.waitpid(child, 0)
        _answer(answers, code=os.waitstatus_to_exitcode(status))
    return 0


def _import() -> None:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    for module in _MODULES:
        import_module(module)


def _answer(answers: Any, **values: int) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def _run(request: dict[str, Any]) -> int:
    """Run a stage in the forked process, with its own log, folder and environment; return its exit code."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"], PYTHONUNBUFFERED="1")
    os.chdir(request["cwd"])
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    # Lightning starts further ranks as `python -m <name of the main module>`.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("cahqp.__main__")
    sys.argv = ["cahqp", *request["arguments"]]
    code: int = import_module("cahqp.__main__").main(request["arguments"])
    return code


if __name__ == "__main__":
    sys.exit(serve())
