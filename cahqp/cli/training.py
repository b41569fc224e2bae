"""Entry of `fit`, `validate`, `test` and `predict`: help and option names, before torch is imported."""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
from argparse import ArgumentError
from collections.abc import Sequence

from cahqp.cli.options import check_configs
from cahqp.errors import option

_ABOUT = {
    "fit": "Train a teacher or a student, or adapt a teacher. Rerun the same command to resume.",
    "validate": "Measure on the validation frames of a config.",
    "test": "Measure on the test frames of a config.",
    "predict": "Run a config's model over its test frames and write all detections to `labels.json`.",
}

COMMON: dict[str, tuple[tuple[str, str], ...]] = {
    "Run": (
        ("--config FILE", "YAML file with any of the options; later files are laid over earlier ones."),
        ("--output DIR", "Run directory; never overwritten."),
        ("--seed N", "Seed of weights, order, augmentation and noise."),
        ("--example-images N", "Number of frames drawn with detections and pseudo-labels."),
        ("--wandb off|online|offline", "Also track with Weights & Biases."),
    ),
    "Model": (
        ("--model.weights FILE", "Model file to start from."),
        ("--model.detector.classes NAMES", "Class names of a new detector."),
        ("--model.detector.size H W", "Height and width of its images in pixels."),
        ("--model.optimizer.learning_rate X", "Learning rate of everything but the backbone."),
    ),
    "Data": (
        ("--data.train FILES", "COCO files to train on (LabelledData)."),
        ("--data.source FILES", "COCO files of the old conditions (AdaptationData, StudentData)."),
        ("--data.target PATHS", "Folders, videos or COCO files of the new conditions (AdaptationData)."),
        ("--data.pseudo FILES", "Labels that `cahqp relabel` wrote (StudentData)."),
        ("--data.val FILES", "COCO files to measure on while training."),
        ("--data.test FILES", "COCO files to measure the final model on."),
        ("--data.batch_size N", "Frames in a batch of one device."),
        ("--data.batches_per_epoch N", "Batches in an epoch."),
        ("--data.ignore_categories NAMES", "Categories whose boxes are left out."),
        ("--data.frame_interval SECONDS", "Seconds between the frames taken from a target video."),
    ),
    "Trainer": (
        ("--trainer.max_epochs N", "Number of epochs."),
        ("--trainer.accelerator auto|cpu|gpu", "Kind of device."),
        ("--trainer.devices N", "Number of devices."),
        ("--trainer.precision 32-true|bf16-mixed", "Precision of the computation."),
    ),
}
"""Options that are used often, by section; a test compares them with the parser."""


def train(arguments: list[str]) -> None:
    """Run `cahqp fit|validate|test|predict`.

    Args:
        arguments: The command's name and its options.
    """
    if {"-h", "--help"} & set(arguments):
        print(short_help(arguments[0]))
        return
    if "--help-all" in arguments:
        _print_full_help(arguments[0])
        return
    check_configs(arguments)
    from cahqp.cli.lightning import lightning  # imports torch

    lightning(to_keys(arguments))


def short_help(command: str) -> str:
    """Return the options that are used often, without importing torch."""
    lines = [f"usage: cahqp {command} --config FILE [--config FILE ...] [options]", "", _ABOUT[command]]
    for section, entries in COMMON.items():
        lines += ["", f"{section}:"]
        for name, text in entries:
            first, *rest = textwrap.wrap(text, 78)
            lines += [f"  {name:<40}{first}", *(" " * 42 + line for line in rest)]
    return "\n".join(
        [
            *lines,
            "",
            "Dotted options are keys of a config and are spelt like them. Lists take several values.",
            f"`cahqp {command} --help-all` lists all options, `cahqp {command} --data.help AdaptationData` those of a",
            "class; configs/ and `cahqp init` have complete configs.",
        ]
    )


def _print_full_help(command: str) -> None:
    from cahqp.cli.lightning import lightning

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        lightning([command, "--help"])
    # LightningCLI's own options have underscores.
    print(
        re.sub(r"(?<=--)[a-z]+(_[a-z]+)+(?=[\s,\]=])", lambda name: name[0].replace("_", "-"), text.getvalue()), end=""
    )


def to_keys(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the option names of LightningCLI: `--example-images` becomes `--example_images`.

    Dotted options are key paths of a config and keep their spelling.

    Raises:
        ArgumentError: An option without dots has underscores.
    """
    return [re.sub(r"^--[^=.]+(?==|$)", _to_key, text) for text in arguments]


def _to_key(match: re.Match[str]) -> str:
    if "_" in match[0]:
        message = f"unrecognized arguments: {match[0]}. Did you mean {option(match[0][2:])}?"
        raise ArgumentError(None, message)
    return "--" + match[0][2:].replace("-", "_")
