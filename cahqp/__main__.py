"""Entry point of `cahqp COMMAND`."""

from __future__ import annotations

import difflib
import sys
from argparse import ArgumentError
from collections.abc import Sequence

from cahqp.cli.commands import COMMANDS, find, usage
from cahqp.errors import CahqpError, shortened
from cahqp.files import disk_trouble
from cahqp.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Command and options; those of the process if `None`.

    Returns:
        The exit code: 0 on success, 1 for an error that the user can fix, 2 for an option that cannot be parsed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
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
        message = shortened(str(error))
        print(f"cahqp {name}: {message}\n`cahqp {name} --help` lists the options.", file=sys.stderr)
        return 2
    except CahqpError as error:
        print(f"cahqp {name}: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        print(f"cahqp {name}: {trouble}", file=sys.stderr)
        return 1
    except SystemExit as ended:  # after `--help`, or when the run is already finished
        if not isinstance(ended.__context__, KeyboardInterrupt):
            return ended.code if isinstance(ended.code, int) else 143  # Lightning's answer to SIGTERM
        return _interrupted(name)
    except KeyboardInterrupt as stop:
        return _interrupted(name, str(stop))
    return 0


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
