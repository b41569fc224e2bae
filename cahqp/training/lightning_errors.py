"""Conversion of Lightning's configuration errors into errors of this package."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from cahqp.errors import ConfigError
from cahqp.inference.device import NO_GPU

_NO_ACCELERATOR = re.compile("No supported gpu backend|CUDAAccelerator|requested gpu", re.IGNORECASE)


@contextmanager
def lightning_errors() -> Iterator[None]:
    """Turn what Lightning refuses, such as missing devices, into one message without a traceback.

    Raises:
        ConfigError: Lightning refused a setting.
    """
    try:
        yield
    except MisconfigurationException as error:
        if not torch.cuda.is_available() and _NO_ACCELERATOR.search(str(error)):
            remedy = "`--accelerator cpu`, for fit `--trainer.accelerator cpu`"
            message = f"accelerator: {NO_GPU.format(remedy=remedy)}"
            raise ConfigError(message) from error
        raise ConfigError(str(error)) from error
