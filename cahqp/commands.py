"""The commands that need no torch."""

from __future__ import annotations

from jsonargparse import auto_cli


def cycle(arguments: list[str]) -> None:
    """Run `cahqp cycle run|status|compare`."""
    from cahqp.cycle.compare import compare
    from cahqp.cycle.run import run
    from cahqp.cycle.status import status

    given = ["--dry_run=true" if text == "--dry-run" else text for text in arguments[1:]]
    auto_cli(
        {"run": run, "status": status, "compare": compare},
        args=given,
        exit_on_error=False,
        prog="cahqp cycle",
        as_positional=False,
    )


def scenes(arguments: list[str]) -> None:
    """Run `cahqp scenes`."""
    from cahqp.data.scenes import scenes as command

    auto_cli(command, args=arguments[1:], exit_on_error=False, prog="cahqp scenes", as_positional=False)


def publish(arguments: list[str]) -> None:
    """Run `cahqp publish`."""
    from cahqp.cycle.publish import publish as command

    auto_cli(command, args=arguments[1:], exit_on_error=False, prog="cahqp publish", as_positional=False)


def report(arguments: list[str]) -> None:
    """Run `cahqp report`."""
    from cahqp.evaluation.report import report as command

    auto_cli(command, args=arguments[1:], exit_on_error=False, prog="cahqp report", as_positional=False)
