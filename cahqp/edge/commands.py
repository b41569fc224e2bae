"""The command lines of this room."""

from __future__ import annotations

from jsonargparse import auto_cli


def export(arguments: list[str]) -> None:
    """Run `cahqp export`."""
    from cahqp.edge.export import export as command

    auto_cli(command, args=arguments[1:], exit_on_error=False, prog="cahqp export", as_positional=False)


def detect(arguments: list[str]) -> None:
    """Run `cahqp detect`."""
    from cahqp.edge.detect import detect as command

    auto_cli(command, args=arguments[1:], exit_on_error=False, prog="cahqp detect", as_positional=False)


def keys(arguments: list[str]) -> None:
    """Run `cahqp keys`."""
    from cahqp.edge.signing import keys as command

    auto_cli(command, args=arguments[1:], exit_on_error=False, prog="cahqp keys", as_positional=False)
