"""Command line of `fit`, `validate`, `test` and `predict`, as jsonargparse expects it."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Sequence

from cahqp.errors import option


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
