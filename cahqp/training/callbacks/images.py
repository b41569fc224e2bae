"""Pictures of pseudo-labels, only where asked for."""

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
from cahqp.training.ca_hqp.module import TeacherAdaptation

_TRAINED, _IGNORED = "yellow", "gray"


class PseudoLabelImages(Callback):
    """Draw the labels of the first target frames of every epoch: what trains, with its score, and what is ignored.

    Args:
        count: Number of frames, at most those of a batch; none by default, for frames show faces and plates.
        directory: Where the pictures go, as JPEG; and to W&B, where that is on.
    """

    def __init__(self, count: int, directory: Path) -> None:
        self.count, self.directory = count, directory

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the first batch of an epoch."""
        if batch_idx or not self.count or not trainer.is_global_zero or not isinstance(pl_module, TeacherAdaptation):
            return
        visible = pl_module.pseudo_labelled
        if visible is None:
            return
        for row, labels in enumerate(visible.targets[: self.count]):
            picture = draw(visible.images[row].cpu(), labels.to("cpu"), pl_module.detector.classes)
            self.directory.mkdir(parents=True, exist_ok=True)
            write_jpeg(picture, str(self.directory / f"pseudo{trainer.global_step:06d}-{row}.jpg"))
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"pseudo_labels/{row}", [picture.permute(1, 2, 0).numpy()])


def draw(image: Tensor, labels: Targets, classes: tuple[str, ...]) -> Tensor:
    """Return a (3, H, W) uint8 image with its labels.

    Args:
        image: (3, H, W) uint8.
        labels: Whose weights are the scores.
        classes: Names in the order of the labels.
    """
    boxes = torch.cat([labels.boxes, labels.ignore])
    if not len(boxes):
        return image
    told = [f"{classes[k]} {s:.2f}" for k, s in zip(labels.labels.tolist(), labels.weights.tolist(), strict=True)]
    ignored = len(labels.ignore)
    colours = [_TRAINED] * len(labels) + [_IGNORED] * ignored
    drawn: Tensor = draw_bounding_boxes(image, boxes, [*told, *[""] * ignored], colours)
    return drawn
