"""The errors that a person can mend: shown as one message, without a traceback."""

from __future__ import annotations

from collections.abc import Mapping


class CahqpError(Exception):
    """What was given, what is allowed and what to do, in the words the user typed."""


class ConfigError(CahqpError):
    """A setting, or several, that cannot be right. All of them are told together."""


class DataError(CahqpError):
    """A file of frames or annotations that cannot be used as it is."""


class WeightsError(CahqpError):
    """A model file that is missing, damaged or made for something else."""


class RunError(CahqpError):
    """A run directory that cannot be started, continued or read."""


def check_numbers(shares: Mapping[str, float | None], counts: Mapping[str, int | None]) -> None:
    """Refuse settings that are out of range, all together.

    Args:
        shares: By name; each must lie in 0..1, or is not given.
        counts: By name; each must be at least 1, or is not given.

    Raises:
        ConfigError: Some are not.
    """
    wrong = [f"{name} must lie in 0..1, got {v}." for name, v in shares.items() if v is not None and not 0 <= v <= 1]
    wrong += [f"{name} must be at least 1, got {v}." for name, v in counts.items() if v is not None and v < 1]
    if wrong:
        raise ConfigError("\n".join(wrong))


_NOISE = ("Does not validate against", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>", "Given value")


def shortened(told: str) -> str:
    """Return jsonargparse's message without what helps nobody: which types it tried, and the whole value again."""
    lines = [line for line in told.splitlines() if not line.strip().startswith(_NOISE)]
    return "\n".join(lines).strip().removeprefix("- ")
