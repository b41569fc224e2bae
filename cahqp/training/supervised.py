"""Supervised training of a teacher, a student, or the oracle of a benchmark."""

from __future__ import annotations

from torch import Tensor

from cahqp.structures import Batch
from cahqp.training.base import DetectionModule, report_nonfinite


class SupervisedTraining(DetectionModule):
    """Train a detector on labelled frames and keep the weights of the best source validation."""

    @report_nonfinite
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the criterion's total."""
        loss = self.supervised_loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss
