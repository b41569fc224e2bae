"""Training of the edge student on pseudo-labels or soft labels of the teacher, and on the labelled source."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cahqp.detectors.base import Detector
from cahqp.detectors.model_file import load
from cahqp.structures import Batch
from cahqp.training.base import DetectionModule, OptimizerSettings, report_nonfinite
from cahqp.training.ca_hqp.domain_passes import slice_output
from cahqp.training.distillation.loss import DistillationCriterion, DistillationSettings, SoftTargets, soft_targets
from cahqp.training.distillation.views import SoftBatch


class StudentTraining(DetectionModule):
    """Retrain a student; batches mix pseudo-labelled frames, or views with soft labels, with source frames.

    Args:
        detector: Architecture to train from scratch.
        weights: Model file of the student to start from, instead.
        optimizer: Settings of the optimizer.
        selection: `last` keeps the weights of the last step; `best` those of the best source validation, which favours
            a student that keeps its source accuracy over one that learns the target.
        teacher: Model file of the teacher to distil from. With `data.store` it does not run; the store must come from
            this teacher.
        distillation: Settings of the distillation loss; used with `DistillationData` only.
    """

    def __init__(
        self,
        detector: Detector | None = None,
        weights: Path | None = None,
        optimizer: OptimizerSettings | None = None,
        selection: Literal["best", "last"] = "last",
        teacher: Path | None = None,
        distillation: DistillationSettings | None = None,
    ) -> None:
        super().__init__(detector, weights, optimizer)
        self.selection = selection
        self.teacher = teacher
        self.distillation = DistillationCriterion(distillation or DistillationSettings())
        # A list keeps the teacher out of the submodules, which are trained, averaged and saved.
        self._loaded_teacher: list[Detector] = []

    @report_nonfinite
    def training_step(self, batch: Batch | SoftBatch, batch_idx: int) -> Tensor:
        """Return the total of all losses; each box counts with its weight."""
        if isinstance(batch, SoftBatch):
            loss = self.log_total(self.soft_losses(batch), "train", len(batch))
        else:
            loss = self.supervised_loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def soft_losses(self, batch: SoftBatch) -> dict[str, Tensor]:
        """Return weighted losses by name: detection losses on labelled images, distillation losses on views."""
        output = self.detect(batch.batch, batch.batch.targets)
        labelled = len(batch) - batch.views
        losses: dict[str, Tensor] = {}
        if labelled:
            losses |= self.criterion(slice_output(output, slice(0, labelled)), batch.batch.targets[:labelled])
        soft = batch.soft if batch.soft is not None else self.ask_teacher(batch)
        weight = self.distillation.settings.weight
        for name, value in self.distillation(slice_output(output, slice(labelled, None)), soft).items():
            losses[name] = weight * value
        return losses

    @torch.no_grad()
    def ask_teacher(self, batch: SoftBatch) -> SoftTargets:
        """Return the teacher's soft labels for a batch's views; the first call loads the teacher."""
        assert batch.teacher_views is not None
        assert self.teacher is not None
        if not self._loaded_teacher:
            self._loaded_teacher.append(load(self.teacher).requires_grad_(False))
        teacher = self._loaded_teacher[0].to(batch.teacher_views.images.device)
        return soft_targets(teacher, batch.teacher_views)
