"""Conversion of Lightning's configuration errors into errors of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

from cahqp.errors import ConfigError


@contextmanager
def lightning_errors() -> Iterator[None]:
    """Turn what Lightning refuses, such as missing devices, into one message without a traceback.

    Raises:
        ConfigError: Lightning refused a setting.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
