"""Retraining of the edge student on the teacher's labels, or its soft answers, and the labelled source."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cahqp.detectors.base import Detector
from cahqp.detectors.model_file import load
from cahqp.structures import Batch
from cahqp.training.base import DetectionModule, OptimizerSettings
from cahqp.training.ca_hqp.domain_passes import part_of_output
from cahqp.training.distillation.loss import DistillationCriterion, DistillationSettings, SoftTargets, answers
from cahqp.training.distillation.views import SoftBatch


class StudentTraining(DetectionModule):
    """Retrain a student from its running weights; batches mix pseudo-labelled frames, or views, with source frames.

    Args:
        detector: Architecture to train from scratch.
        weights: Model file of the running student, instead.
        optimizer: Of everything that trains.
        selection: `last` keeps the weights of the last step; `best` those of the best source validation, which favours
            a student that forgets nothing over one that learns the target.
        teacher: Model file of the teacher to distil from. With a store it never runs: the store must be of it.
        distillation: How soft answers are learnt from; only `DistillationData` brings them.
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
        # In a list, for the teacher is no part of what trains, is averaged or is saved.
        self._asked: list[Detector] = []

    def training_step(self, batch: Batch | SoftBatch, batch_idx: int) -> Tensor:
        """Return the total of all losses; each box counts with its weight."""
        if isinstance(batch, SoftBatch):
            losses = self.soft_losses(batch)
            for name, value in losses.items():
                self.log(f"train/{name}", value.sum(), batch_size=len(batch))
            loss = torch.stack([value.sum() for value in losses.values()]).sum()
        else:
            loss, _ = self.supervised_loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def soft_losses(self, batch: SoftBatch) -> dict[str, Tensor]:
        """Return weighted losses by name: the criterion's on the labelled images, the distillation's on the views."""
        output = self.detect(batch.batch, batch.batch.targets)
        labelled = len(batch) - batch.views
        losses: dict[str, Tensor] = {}
        if labelled:
            losses |= self.criterion(part_of_output(output, slice(0, labelled)), batch.batch.targets[:labelled])
        soft = batch.soft if batch.soft is not None else self.ask_teacher(batch)
        weight = self.distillation.settings.weight
        for name, value in self.distillation(part_of_output(output, slice(labelled, None)), soft).items():
            losses[name] = weight * value
        return losses

    @torch.no_grad()
    def ask_teacher(self, batch: SoftBatch) -> SoftTargets:
        """Return the teacher's answers to a batch's views; it is loaded when it is first asked."""
        assert batch.asked is not None
        assert self.teacher is not None
        if not self._asked:
            self._asked.append(load(self.teacher).requires_grad_(False))
        teacher = self._asked[0].to(batch.asked.images.device)
        images = teacher.preprocessing.normalise(batch.asked.images, batch.asked.padding_mask)
        return answers(teacher(images, batch.asked.padding_mask))
