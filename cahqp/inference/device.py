"""Devices that users name, such as `cpu` or `cuda:0`."""

from __future__ import annotations

import torch

from cahqp.errors import ConfigError

NO_GPU = (
    "a GPU was asked for, but PyTorch finds none here. Use the CPU ({remedy}), or install a GPU driver and a build of "
    "PyTorch for it; `python -c 'import torch; print(torch.cuda.is_available())'` must print True."
)
"""Message for a missing GPU; `remedy` is the option for the CPU."""


def check_device(name: str, option: str = "--device ") -> torch.device:
    """Return the device of a name.

    Args:
        name: `cpu`, `cuda` or `cuda:N`.
        option: Spelling of the option in messages, up to its value.

    Raises:
        ConfigError: The name is not that of a device, or this machine does not have it.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        message = f"{option}{name} is not a device. Give cpu, cuda, or cuda:N."
        raise ConfigError(message) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        message = f"{option}{name}: {NO_GPU.format(remedy=option + 'cpu')}"
        raise ConfigError(message)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        message = f"{option}{name}: this machine has {torch.cuda.device_count()} GPUs, cuda:0 the first."
        raise ConfigError(message)
    return device
