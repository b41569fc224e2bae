"""Description of a fuzz target."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass

from cahqp.__main__ import main
from cahqp.errors import CahqpError


def unchanged(folder, mutator):
    """Leave the changed files as they are."""


@dataclass(frozen=True)
class Target:
    """One external format.

    Attributes:
        name: Name of the format.
        make: Write valid files to a folder, with the project's own writers.
        read: Read the files as the commands do, given the folder, an output folder and the mutator.
        fixed: Prefixes of files that are never changed.
        disguise: Change the files further, such as hashes that anyone can compute again.
    """

    name: str
    make: Callable
    read: Callable
    fixed: tuple[str, ...] = ()
    disguise: Callable = unchanged


def attempt(mutator, *readers):
    """Call two of the readers, or all on valid files, and raise the first refusal at the end."""
    refusals = []
    for reader in mutator.choose(readers):
        try:
            reader()
        except CahqpError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def command(*arguments, accept=()):
    """Run a command in this process; a message to the user is a refusal.

    Args:
        *arguments: Command line after `cahqp`.
        accept: Further exit codes of a valid run.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main([str(argument) for argument in arguments])
    if code not in (0, *accept):
        raise CahqpError(printed.getvalue())
