"""Errors that the user can fix: printed as one message, without a traceback."""

from __future__ import annotations

from collections.abc import Mapping

MAX_COUNT = 10_000_000
"""Largest number of frames, steps and the like: above it a command would not end."""
MAX_RESAMPLES = 100_000
"""Largest number of bootstrap resamples: above it they take more than a gigabyte."""


class CahqpError(Exception):
    """Base class. The message states what was given, what is allowed and what to do."""


class ConfigError(CahqpError):
    """One or more invalid settings; one message lists them all."""


class DataError(CahqpError):
    """A file of frames or annotations that cannot be used."""


class WeightsError(CahqpError):
    """A model file that is missing, damaged or incompatible."""


class RunError(CahqpError):
    """A run directory that cannot be started, continued or read."""


def option(name: str) -> str:
    """Return the command-line spelling of a field: `ignore_share` becomes `--ignore-share`.

    Args:
        name: Name of a field. In a dotted name, the key path of a config, underscores stay.
    """
    return f"--{name}" if "." in name else f"--{name.replace('_', '-')}"


def check_numbers(
    shares: Mapping[str, float | None], counts: Mapping[str, int | None], limit: int = MAX_COUNT
) -> None:  # fmt: skip
    """Check the ranges of settings.

    Args:
        shares: Values by name; each must lie in [0, 1] or be `None`.
        counts: Values by name; each must be at least 1 and at most `limit`, or be `None`.
        limit: Largest count.

    Raises:
        ConfigError: Some values are out of range.
    """
    wrong = [f"{name} must lie in 0..1, got {v}." for name, v in shares.items() if v is not None and not 0 <= v <= 1]
    wrong += [f"{name} must be at least 1, got {v}." for name, v in counts.items() if v is not None and v < 1]
    wrong += [f"{name} must be at most {limit:,}, got {v}." for name, v in counts.items() if (v or 0) > limit]
    if wrong:
        raise ConfigError("\n".join(wrong))


_NOISE = ("Does not validate against", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>", "Given value")


def shortened(message: str) -> str:
    """Return jsonargparse's message without the lines that list attempted types and repeat the whole value."""
    lines = [line for line in message.splitlines() if not line.strip().startswith(_NOISE)]
    return "\n".join(lines).strip().removeprefix("- ")
