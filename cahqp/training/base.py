"""What every training module shares: the detector, its criterion, its optimizer and its validation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from cahqp.adaptation.all_gather import gathered
from cahqp.data.base import DetectionData
from cahqp.data.modules import AdaptationData
from cahqp.data.seeding import seed_of
from cahqp.detectors.base import Detector, Output
from cahqp.detectors.losses.criterion import SetCriterion
from cahqp.detectors.model_file import load
from cahqp.errors import ConfigError
from cahqp.structures import Batch, Detections, Targets


@dataclass
class OptimizerSettings:
    """AdamW with a linear warm-up.

    Attributes:
        learning_rate: Of everything but the backbone.
        backbone_factor: The backbone's learning rate as a share of it.
        weight_decay: Not applied to norms and biases.
        warmup: Steps until the learning rate is reached.
        schedule: `constant` after the warm-up, `cosine` down to a hundredth at the last step, or `step`: a tenth over
            the last tenth of the steps.
    """

    learning_rate: float = 2e-4
    backbone_factor: float = 0.5
    weight_decay: float = 1e-4
    warmup: int = 50
    schedule: Literal["constant", "cosine", "step"] = "cosine"

    def factor(self, step: int, total: float) -> float:
        """Return the share of the learning rate at a step of `total`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, step / max(1.0, total))
        if self.schedule == "cosine":
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
        return 0.1 if self.schedule == "step" and progress >= 0.9 else 1.0


def resolve_detector(detector: Detector | None, weights: Path | None) -> Detector:
    """Return the detector given, or the one of the model file.

    Raises:
        ConfigError: Neither or both are given.
    """
    if (detector is None) == (weights is None):
        message = (
            "Give the model either a detector to train from scratch or weights to start from, not both or neither."
        )
        raise ConfigError(message)
    if detector is not None:
        return detector
    assert weights is not None
    return load(weights).train()


class DetectionModule(LightningModule):
    """A detector in training. Subclasses say what a step is.

    Args:
        detector: Architecture to train from scratch.
        weights: Model file to start from, instead.
        optimizer: Of everything that trains.

    Attributes:
        selection: Which weights a fit leaves: those of the `best` source validation, or the `last`.
        adapts: Whether a step takes the batches of `AdaptationData`.
    """

    selection: Literal["best", "last"] = "best"
    adapts = False

    def __init__(
        self,
        detector: Detector | None = None,
        weights: Path | None = None,
        optimizer: OptimizerSettings | None = None,
    ) -> None:
        super().__init__()
        self.detector = resolve_detector(detector, weights)
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.criterion = SetCriterion(self.detector.class_loss)
        # It would gather tensor by tensor, and hang where ranks hold unequal numbers of frames; `_log_metric` gathers.
        self.metric = MeanAveragePrecision(class_metrics=True, sync_on_compute=False)
        self.metric.warn_on_many_detections = False
        self._collected: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def setup(self, stage: str) -> None:
        """See that the data are of the kind that a step takes.

        Raises:
            ConfigError: They are not.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and isinstance(data, DetectionData) and isinstance(data, AdaptationData) != self.adapts:
            message = (
                f"{type(self).__name__} cannot train on {type(data).__name__}: TeacherAdaptation takes AdaptationData, "
                "and no other model does. Change `class_path` of `data` or of `model`."
            )
            raise ConfigError(message)

    def detect(self, batch: Batch, targets: list[Targets] | None = None) -> Output:
        """Return the detector's output for a batch; with targets, also for denoising queries."""
        images = self.detector.preprocessing.normalise(batch.images, batch.padding_mask)
        output: Output = self.detector(images, batch.padding_mask, targets)
        return output

    def supervised_loss(self, batch: Batch, prefix: str = "train") -> tuple[Tensor, Output]:
        """Return the criterion's total on a batch, logged by part, and the output.

        Denoising noise follows the seed on each target, so it does not depend on the rest of the batch.
        """
        output = self.detect(batch, batch.targets)
        losses = self.criterion(output, batch.targets)
        for name, value in losses.items():
            self.log(f"{prefix}/{name}", value.sum(), batch_size=len(batch))
        return torch.stack([value.sum() for value in losses.values()]).sum(), output

    def detections(self, batch: Batch) -> list[Detections]:
        """Return detections in pixels of the batch."""
        output = self.detect(batch)
        return self.detector.decode(output, output.sizes)

    def on_train_start(self) -> None:
        """Remember the run's seed."""
        self._seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let dropout depend on the batch's number alone: a run that is resumed drops what it would have dropped."""
        number = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        torch.manual_seed(seed_of(self._seed, number, self.global_rank))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect detections and truth."""
        self._collect(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect detections and truth."""
        self._collect(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Detections]:
        """Return detections in pixels of the original images."""
        output = self.detect(batch)
        sizes = torch.tensor([frame.size for frame in batch.frames], device=output.sizes.device)
        return self.detector.decode(output, sizes)

    def _collect(self, batch: Batch) -> None:
        for found, ground_truth in zip(self.detections(batch), batch.targets, strict=True):
            said = {"boxes": found.boxes.cpu(), "scores": found.scores.cpu(), "labels": found.labels.cpu()}
            self._collected.append((said, _with_regions(ground_truth, len(self.detector.classes))))

    def on_validation_epoch_end(self) -> None:
        """Log average precision on the source's validation frames."""
        self._log_metric("val")

    def on_test_epoch_end(self) -> None:
        """Log average precision."""
        self._log_metric("test")

    def _log_metric(self, prefix: str) -> None:
        seen, self._collected = gathered(self._collected), []
        self.metric.update(*([part[side] for part in seen] for side in (0, 1)))
        result: dict[str, Any] = self.metric.compute()
        self.metric.reset()
        # torchmetrics says -1 where there was nothing to measure; that is no precision.
        self.log(f"{prefix}/ap50", result["map_50"].clamp(min=0).to(self.device), prog_bar=True, sync_dist=True)
        self.log(f"{prefix}/map", result["map"].clamp(min=0).to(self.device), sync_dist=True)

    def trained_modules(self) -> dict[str, nn.Module]:
        """Return what trains, by name, beside the detector."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups: backbone or not, with weight decay or not."""
        settings = self.optimizer_settings
        backbone = {id(p) for p in self.detector.backbone_parameters()}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for module in [self.detector, *self.trained_modules().values()]:
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    decays = parameter.ndim > 1 and "norm" not in name
                    groups.setdefault((id(parameter) in backbone, decays), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": settings.learning_rate * (settings.backbone_factor if in_backbone else 1.0),
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (in_backbone, decays), parameters in groups.items()
        ]

    def configure_optimizers(self) -> Any:
        """Return AdamW and its schedule over optimizer steps.

        Raises:
            ConfigError: The schedule falls towards an end, and the training has none in steps.
        """
        total, schedule = self.trainer.estimated_stepping_batches, self.optimizer_settings.schedule
        if math.isinf(total) and schedule != "constant":
            message = (
                f"optimizer.schedule: {schedule} falls towards the end of the training, and this one has none in "
                "steps. Set trainer.max_epochs or trainer.max_steps, or optimizer.schedule: constant."
            )
            raise ConfigError(message)
        # One pass over all parameters; with mixed precision Lightning cannot clip gradients before it.
        fused = str(self.trainer.precision) in ("32-true", "64-true")
        optimizer = torch.optim.AdamW(self.parameter_groups(), fused=fused)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.optimizer_settings.factor(step, float(total))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _with_regions(ground_truth: Targets, classes: int) -> dict[str, Tensor]:
    """Return a metric's truth of one image; a region to ignore is one for every class, as it is in training."""
    boxes = torch.cat([ground_truth.boxes, ground_truth.ignore.repeat(classes, 1)])
    of_regions = torch.arange(classes, device=ground_truth.labels.device).repeat_interleave(len(ground_truth.ignore))
    labels = torch.cat([ground_truth.labels, of_regions])
    crowd = (torch.arange(len(boxes)) >= len(ground_truth)).int()
    return {"boxes": boxes.cpu(), "labels": labels.cpu(), "iscrowd": crowd}
