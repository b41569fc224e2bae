"""The commands that need no Lightning, which takes seconds to import; most of them need no torch either."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from cahqp.cli.options import run_with_lists, switched, with_flags
from cahqp.errors import ConfigError
from cahqp.labels.formats import Format

LABEL_LISTS: dict[str, Any] = {
    "views": str,
    "teachers": Path,
    "predictions": Path,
    "uncalibrated": str,
    "format": Format,
}
"""Options of `relabel` and `calibrate` that take several values."""

# name -> (what it measures, module, function that takes the remaining arguments); imported only when asked for
BENCHMARKS: dict[str, tuple[str, str, str]] = {
    "adapt": ("arms of adaptation over seeds, with intervals", "cahqp.benchmarks.adapt.command", "command"),
    "attention": ("the forms of deformable attention on this machine", "cahqp.benchmarks.speed.attention", "command"),
    "gate": ("how often the gate is wrong, on simulated candidates", "cahqp.cli.edge_commands", "benchmark_gate"),
    "measure": ("AP and operating points of models on labelled frames", "cahqp.benchmarks.adapt.measure", "command"),
    "relabel": ("what labels cost beside the teacher's forward passes", "cahqp.benchmarks.relabel", "command"),
    "speed": (
        "images per second and memory of a config, beside a reference",
        "cahqp.benchmarks.speed.command",
        "command",
    ),
    "store": ("what a soft-label store saves over asking the teacher", "cahqp.benchmarks.soft_labels", "command"),
}


def benchmark(arguments: list[str]) -> None:
    """Run `cahqp benchmark NAME`."""
    given = arguments[1:]
    if not given or given[0] in ("-h", "--help"):
        lines = [f"  {name:<10} {text}" for name, (text, _, _) in BENCHMARKS.items()]
        print("\n".join(["usage: cahqp benchmark NAME [options]\n\nWhat can be measured:", *lines]))
        return
    if given[0] not in BENCHMARKS:
        message = f"there is no benchmark {given[0]!r}. Known: {', '.join(BENCHMARKS)}."
        raise ConfigError(message)
    _, module, function = BENCHMARKS[given[0]]
    command: Callable[[list[str]], None] = getattr(import_module(module), function)
    command(given)


def cycle(arguments: list[str]) -> None:
    """Run `cahqp cycle run|status|compare`."""
    from cahqp.cycle.compare import compare
    from cahqp.cycle.run import run
    from cahqp.cycle.status import status

    switches = {"--dry-run": "--dry_run=true", "--watch": "--watch=true"}
    given = [switches.get(text, text) for text in arguments[1:]]
    auto_cli(
        {"run": run, "status": status, "compare": compare},
        args=given,
        exit_on_error=False,
        prog="cahqp cycle",
        as_positional=False,
    )


def scenes(arguments: list[str]) -> None:
    """Run `cahqp scenes`."""
    from cahqp.scenes import scenes as command

    auto_cli(command, args=arguments[1:], exit_on_error=False, prog="cahqp scenes", as_positional=False)


def publish(arguments: list[str]) -> None:
    """Run `cahqp publish`."""
    from cahqp.cycle.publish import publish as command

    auto_cli(command, args=arguments[1:], exit_on_error=False, prog="cahqp publish", as_positional=False)


def report(arguments: list[str]) -> None:
    """Run `cahqp report`."""
    from cahqp.reports.cycle import report as command

    auto_cli(command, args=arguments[1:], exit_on_error=False, prog="cahqp report", as_positional=False)


def reformat(arguments: list[str]) -> None:
    """Run `cahqp reformat`."""
    from cahqp.labels.formats.command import reformat as command

    auto_cli(
        command,
        args=switched(arguments[1:], "--reviewed"),
        exit_on_error=False,
        prog="cahqp reformat",
        as_positional=False,
    )


def quality(arguments: list[str]) -> None:
    """Run `cahqp quality`."""
    from cahqp.reports.quality import quality as command

    auto_cli(command, args=arguments[1:], exit_on_error=False, prog="cahqp quality", as_positional=False)


def evaluate(arguments: list[str]) -> None:
    """Run `cahqp evaluate`."""
    from cahqp.inference.evaluate import evaluate as command

    run_with_lists(command, arguments, {"weights": str, "frames": str})


def calibrate(arguments: list[str]) -> None:
    """Run `cahqp calibrate`."""
    from cahqp.relabel.calibrate import calibrate_command as command

    run_with_lists(command, arguments, {"frames": Path}, LABEL_LISTS)


def convert(arguments: list[str]) -> None:
    """Run `cahqp convert FILE OUTPUT`; both may be given as flags too."""
    from cahqp.detectors.published.convert import convert as command

    given = with_flags(arguments[1:], ("--weights", "--output"))
    auto_cli(command, args=given, exit_on_error=False, prog="cahqp convert", as_positional=False)


def info(arguments: list[str]) -> None:
    """Run `cahqp info FILE`."""
    from cahqp.inference.evaluate import info as command

    auto_cli(command, args=arguments[1:], prog="cahqp info")
