"""Steps and images of trainings, from their config files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cahqp.errors import ConfigError
from cahqp.yaml_policy import read_yaml


def count_steps(configs: Sequence[str]) -> int:
    """Return the number of steps of a training.

    Raises:
        ConfigError: The configs leave epochs or steps per epoch open.
    """
    settings = merge_configs(configs)
    epochs = settings.get("trainer", {}).get("max_epochs")
    batches = settings.get("data", {}).get("init_args", {}).get("batches_per_epoch")
    if not (isinstance(epochs, int) and isinstance(batches, int)):
        message = (
            f"{', '.join(configs)}: trainer.max_epochs is {epochs} and data.init_args.batches_per_epoch is {batches}. "
            "Set both to integers."
        )
        raise ConfigError(message)
    return epochs * batches


def images_per_step(configs: Sequence[str], settings: Mapping[str, Any]) -> tuple[int, int]:
    """Return the source and target images in a step of an adaptation; without separate batches, all and 0.

    Args:
        configs: Configs of the training.
        settings: Options of `fit` laid over them.
    """
    data = merge_configs(configs).get("data", {}).get("init_args", {})
    data |= {name.removeprefix("data."): value for name, value in settings.items()}
    source = int(data.get("batch_size", 8))
    return source, int(data.get("target_batch_size") or source)


def merge_configs(configs: Sequence[str]) -> dict[str, Any]:
    """Return the settings of configs, later ones laid over earlier ones."""
    settings: dict[str, Any] = {}
    for config in configs:
        settings = _merge(settings, read_yaml(Path(config)) or {})
    return settings


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merge(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return below | above | both
