"""Images of pseudo-labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torchvision.io import write_jpeg
from torchvision.utils import draw_bounding_boxes

from cahqp.structures import Targets
from cahqp.training.base import DetectionModule

_TRAINED, _IGNORED = "yellow", "gray"


class PseudoLabelImages(Callback):
    """Draw the labels of the first target frames of every epoch: trained boxes with scores, and ignored regions.

    Args:
        count: Number of frames, at most those of a batch. Frames show faces and plates, so 0 is the safe choice.
        directory: Directory of the JPEG files; W&B gets the images too if it is on.
    """

    def __init__(self, count: int, directory: Path) -> None:
        self.count, self.directory = count, directory

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the first batch of an epoch."""
        if batch_idx or not self.count or not trainer.is_global_zero or outputs.get("pseudo_labels") is None:
            return
        assert isinstance(pl_module, DetectionModule)
        images = batch["target_weak"].images
        for row, labels in enumerate(outputs["pseudo_labels"][: self.count]):
            image = draw_targets(images[row].cpu(), labels.to("cpu"), pl_module.detector.classes)
            path = self.directory / f"pseudo{trainer.global_step:06d}-{row}.jpg"
            save_image(trainer, image, path, f"pseudo_labels/{row}")


def save_image(trainer: Trainer, image: Tensor, path: Path, name: str) -> None:
    """Write a (3, H, W) uint8 image as JPEG, and log it to W&B under a name if W&B is on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jpeg(image, str(path))
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [image.permute(1, 2, 0).numpy()])


def draw_targets(image: Tensor, labels: Targets, classes: tuple[str, ...]) -> Tensor:
    """Return a (3, H, W) uint8 image with its labels.

    Args:
        image: (3, H, W) uint8.
        labels: Boxes and ignored regions; the weights are the scores.
        classes: Names in the order of the labels.
    """
    boxes = torch.cat([labels.boxes, labels.ignore])
    if not len(boxes):
        return image
    texts = [f"{classes[k]} {s:.2f}" for k, s in zip(labels.labels.tolist(), labels.weights.tolist(), strict=True)]
    ignored = len(labels.ignore)
    colours = [_TRAINED] * len(labels) + [_IGNORED] * ignored
    drawn: Tensor = draw_bounding_boxes(image, boxes, [*texts, *[""] * ignored], colours)
    return drawn
