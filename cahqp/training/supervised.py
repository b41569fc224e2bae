"""Training on labels: the teacher on its source, the student on its source, and the oracle of a benchmark."""

from __future__ import annotations

from torch import Tensor

from cahqp.structures import Batch
from cahqp.training.base import DetectionModule


class SupervisedTraining(DetectionModule):
    """Train a detector on labelled frames; the best source validation is kept."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the criterion's total."""
        loss, _ = self.supervised_loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss
