"""The commands that the cycle's own stages are: what they read stands in files, so none but `features` needs torch."""

from __future__ import annotations

from pathlib import Path

from cahqp.cli.options import run_with_lists


def features(arguments: list[str]) -> None:
    """Run `cahqp features`."""
    from cahqp.drift.features import features as command

    run_with_lists(command, arguments, {"frames": Path})


def drift(arguments: list[str]) -> None:
    """Run `cahqp drift`."""
    from cahqp.drift.command import drift as command

    run_with_lists(command, arguments, {"reference": str, "frames": Path})


def sample(arguments: list[str]) -> None:
    """Run `cahqp sample`."""
    from cahqp.cycle.sample import sample as command

    run_with_lists(command, arguments, {"features": Path}, {"cameras": str, "known": Path})


def fetch(arguments: list[str]) -> None:
    """Run `cahqp fetch`."""
    from cahqp.cycle.fetch import fetch as command

    run_with_lists(command, arguments, {}, {"after": Path})


def replay(arguments: list[str]) -> None:
    """Run `cahqp replay`."""
    from cahqp.cycle.replay_buffer import replay as command

    run_with_lists(command, arguments, {})


def apply_decision(arguments: list[str]) -> None:
    """Run `cahqp apply-decision`."""
    from cahqp.cycle.apply_decision import apply_decision as command

    run_with_lists(command, arguments, {})
