"""Checkpoints of a fit, written atomically, and images of detections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torchvision.utils import draw_bounding_boxes

from cahqp.files import atomic_write
from cahqp.structures import Batch
from cahqp.training.base import DetectionModule
from cahqp.training.callbacks.images import save_image


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints to a temporary file in the same directory and rename it.

    Lightning writes to the system's temporary directory. If that is another file system, the last step is a copy, and
    an interruption leaves an incomplete file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save a checkpoint."""
        with atomic_write(Path(path), "wb") as file:
            torch.save(checkpoint, file)


def checkpoints(directory: Path) -> list[ModelCheckpoint]:
    """Return the two checkpoints of every fit: `best` by source validation, `last` after every epoch.

    `last` comes second, so that it contains the best score so far, with which a resumed run compares.

    Args:
        directory: Directory of the checkpoints.
    """
    common: dict[str, Any] = {"dirpath": directory, "enable_version_counter": False, "save_top_k": 1}
    best = ModelCheckpoint(filename="best", monitor="val/ap50", mode="max", **common)
    last = ModelCheckpoint(filename="last", every_n_epochs=1, save_on_train_epoch_end=True, **common)
    return [best, last]


class ExampleImages(Callback):
    """Draw detections on the first validation frames, once per validation.

    Args:
        count: Number of frames. Frames show faces and plates, so 0 is the safe choice.
        directory: Directory of the JPEG files; W&B gets the images too if it is on.
        threshold: Lowest score that is drawn, 0..1.
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
        """Draw the frames of a batch that are among the first."""
        first = batch_idx * len(batch)
        if first >= self.count or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, DetectionModule)
        with torch.no_grad():
            found = pl_module.detections(batch)
        classes = pl_module.detector.classes
        for row in range(min(len(batch), self.count - first)):
            image, visible = batch.images[row].cpu(), found[row][found[row].scores >= self.threshold]
            texts = [f"{classes[k]} {s:.2f}" for k, s in zip(visible.labels, visible.scores, strict=True)]
            if texts:
                image = draw_bounding_boxes(image, visible.boxes.cpu(), texts)
            path = self.directory / f"step{trainer.global_step:06d}-{first + row}.jpg"
            save_image(trainer, image, path, f"examples/{first + row}")
