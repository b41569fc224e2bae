"""What the configs of a benchmark's trainings say before they are run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cahqp.errors import ConfigError


def steps_of(configs: Sequence[str]) -> int:
    """Return the steps of a training by its configs.

    Raises:
        ConfigError: They do not say how many.
    """
    said = merged(configs)
    epochs = said.get("trainer", {}).get("max_epochs")
    batches = said.get("data", {}).get("init_args", {}).get("batches_per_epoch")
    if not (isinstance(epochs, int) and isinstance(batches, int)):
        message = (
            f"{', '.join(configs)}: trainer.max_epochs is {epochs} and data.init_args.batches_per_epoch is {batches}. "
            "A benchmark compares by steps: give both as numbers."
        )
        raise ConfigError(message)
    return epochs * batches


def merged(configs: Sequence[str]) -> dict[str, Any]:
    """Return what configs say together, the later ones over the earlier."""
    said: dict[str, Any] = {}
    for config in configs:
        said = _over(said, yaml.safe_load(Path(config).read_text(encoding="utf-8")) or {})
    return said


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {k: _over(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return below | above | both
