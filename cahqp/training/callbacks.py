"""Checkpoints that are whole or absent, and the pictures that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from cahqp.files import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside their final name and rename them.

    Lightning's own writer goes through the system's temporary directory: on another file system its last step is a
    copy, and a kill in it leaves a torn file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save a checkpoint whole or not at all."""
        with atomic_write(Path(path), "wb") as file:
            torch.save(checkpoint, file)


def checkpoints(directory: Path) -> list[ModelCheckpoint]:
    """Return the two checkpoints of every fit: `best` by source validation, `last` after every epoch.

    `last` comes after `best`, so that it holds the best score so far and a resumed run goes on comparing with it.

    Args:
        directory: Where they lie.
    """
    common: dict[str, Any] = {"dirpath": directory, "enable_version_counter": False, "save_top_k": 1}
    best = ModelCheckpoint(filename="best", monitor="val/ap50", mode="max", **common)
    last = ModelCheckpoint(filename="last", every_n_epochs=1, save_on_train_epoch_end=True, **common)
    return [best, last]
