"""The errors that a person can mend: shown as one message, without a traceback."""

from __future__ import annotations


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


_NOISE = ("Does not validate against", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>", "Given value")


def shortened(told: str) -> str:
    """Return jsonargparse's message without what helps nobody: which types it tried, and the whole value again."""
    lines = [line for line in told.splitlines() if not line.strip().startswith(_NOISE)]
    return "\n".join(lines).strip().removeprefix("- ")
