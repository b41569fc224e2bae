"""Retraining of the edge student on the teacher's labels and the labelled source."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from cahqp.detectors.output import Detector
from cahqp.structures import Batch
from cahqp.training.base import DetectionModule, OptimizerSettings


class StudentTraining(DetectionModule):
    """Retrain a student from its running weights; batches mix pseudo-labelled and source frames.

    Args:
        detector: Architecture to train from scratch.
        weights: Model file of the running student, instead.
        optimizer: Of everything that trains.
        selection: `last` keeps the weights of the last step; `best` those of the best source validation, which favours
            a student that forgets nothing over one that learns the target.
    """

    def __init__(
        self,
        detector: Detector | None = None,
        weights: Path | None = None,
        optimizer: OptimizerSettings | None = None,
        selection: Literal["best", "last"] = "last",
    ) -> None:
        super().__init__(detector, weights, optimizer)
        self.selection = selection

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the criterion's total; each box counts with its weight."""
        loss, _ = self.supervised_loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss
