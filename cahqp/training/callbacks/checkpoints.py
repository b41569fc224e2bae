"""Checkpoints that are whole or absent, and the pictures that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from torchvision.io import write_jpeg
from torchvision.utils import draw_bounding_boxes

from cahqp.files import atomic_write
from cahqp.structures import Batch
from cahqp.training.base import DetectionModule


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


class ExampleImages(Callback):
    """Draw detections on the first validation frames, once per validation, only where asked for.

    Args:
        count: Number of frames; none by default, for frames show faces and plates.
        directory: Where the pictures go, as JPEG; and to W&B, where that is on.
        threshold: Lowest score that is drawn.
    """

    def __init__(self, count: int, directory: Path, threshold: float = 0.3) -> None:
        self.count, self.directory, self.threshold = count, directory, threshold

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw, as long as frames are wanted."""
        first = batch_idx * len(batch)
        if first >= self.count or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, DetectionModule)
        with torch.no_grad():
            found = pl_module.detections(batch)
        for row in range(min(len(batch), self.count - first)):
            sure = found[row][found[row].scores >= self.threshold]
            names = [f"{pl_module.detector.classes[k]} {s:.2f}" for k, s in zip(sure.labels, sure.scores, strict=True)]
            picture = (
                draw_bounding_boxes(batch.images[row].cpu(), sure.boxes.cpu(), names) if names else batch.images[row]
            )
            self.directory.mkdir(parents=True, exist_ok=True)
            write_jpeg(picture, str(self.directory / f"step{trainer.global_step:06d}-{first + row}.jpg"))
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"examples/{first + row}", [picture.permute(1, 2, 0).numpy()])
