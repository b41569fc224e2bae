"""Entry point of `cahqp COMMAND`."""

from __future__ import annotations

import difflib
import logging
import os
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from cahqp.cli.commands import COMMANDS, find, usage
from cahqp.errors import CahqpError, shortened
from cahqp.files import disk_trouble, redact_text
from cahqp.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Command and options; those of the process if `None`.

    Returns:
        The exit code: 0 on success, 1 for an error that the user can fix, 2 for an option that cannot be parsed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    switches = {text for text in arguments if text in _SWITCHES}
    arguments = [text for text in arguments if text not in _SWITCHES]
    try:
        with _output(switches):
            code = _run(arguments, verbose="--verbose" in switches)
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        _close_stdout()
        return 128 + 13  # as after SIGPIPE
    return code


_SWITCHES = ("--quiet", "--verbose")
"""Options of every command, anywhere on the command line."""


def _run(arguments: list[str], verbose: bool) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"cahqp {__version__}")
        return 0
    name, command = find(arguments)
    if command is None:
        return _without_command(arguments)
    try:
        command.run(name, arguments[len(name.split()) :])
    except ArgumentError as error:
        lines = shortened(str(error)).splitlines()
        return _fail(name, "\n".join([*lines[:_MAX_LINES], f"`cahqp {name} --help` lists the options."]), 2, verbose)
    except CahqpError as error:
        return _fail(name, str(error), 1, verbose)
    except BrokenPipeError:
        raise
    except Exception as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        return _fail(name, trouble, 1, verbose)
    except SystemExit as ended:  # after `--help`, or when the run is already finished
        if not isinstance(ended.__context__, KeyboardInterrupt):
            return ended.code if isinstance(ended.code, int) else 143  # Lightning's answer to SIGTERM
        return _interrupted(name)
    except KeyboardInterrupt as stop:
        return _interrupted(name, str(stop))
    return 0


_MAX_LINES = 5
"""Lines of the parser's message that are shown."""


def _fail(name: str, message: str, code: int, verbose: bool) -> int:
    """Print the message of an error, with `--verbose` after its traceback; return the exit code."""
    if verbose:
        print(redact_text(traceback.format_exc(), ""), file=sys.stderr, end="")
    print(f"cahqp {name}: {message}", file=sys.stderr)
    return code


@contextmanager
def _output(switches: Container[str]) -> Iterator[None]:
    """With `--quiet` print warnings and errors only, with `--verbose` also log messages."""
    if "--verbose" in switches:
        logging.basicConfig(level=logging.INFO)
    if "--quiet" not in switches:
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def _close_stdout() -> None:
    """Discard buffered output, so that the interpreter does not fail on it at exit."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # a stream without a file, as in a test
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _without_command(arguments: list[str]) -> int:
    """Print the commands of a group, or an error for an unknown command; return the exit code."""
    first = arguments[0]
    members = [name for name in COMMANDS if name.startswith(f"{first} ")]
    if members and (len(arguments) == 1 or arguments[1] in ("-h", "--help")):
        print(usage(first))
        return 0
    known = members or list(COMMANDS)
    name = " ".join(arguments[:2]) if members else first
    close = difflib.get_close_matches(name, known, n=1)
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    print(f"cahqp: unknown command {name!r}.{suggestion} Known: {', '.join(known)}.", file=sys.stderr)
    return 2


def _interrupted(command: str, state: str = "") -> int:
    """Print what an interrupt left behind: the message that came with it, or how to resume; return the exit code."""
    print(f"cahqp {command}: stopped. {state or 'Rerun the same command to resume.'}", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main())
