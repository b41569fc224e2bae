"""Base class of the LightningModules: detector, criterion, optimizer and validation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from cahqp.adaptation.all_gather import gathered
from cahqp.data.seeding import seed_of
from cahqp.detectors.base import Detector, Output
from cahqp.detectors.losses.criterion import SetCriterion
from cahqp.detectors.model_file import load
from cahqp.errors import ConfigError
from cahqp.structures import Batch, Detections, Targets

Step = TypeVar("Step", bound=Callable[..., Any])


@dataclass
class OptimizerSettings:
    """AdamW with a linear warm-up.

    Attributes:
        learning_rate: Learning rate of everything but the backbone.
        backbone_factor: Learning rate of the backbone, as a factor of `learning_rate`.
        weight_decay: Weight decay; norms and biases have none.
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
        """Return the factor on the learning rate at a step of `total`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, step / max(1.0, total))
        if self.schedule == "cosine":
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
        return 0.1 if self.schedule == "step" and progress >= 0.9 else 1.0


def report_nonfinite(step: Step) -> Step:
    """Decorate a `training_step`: non-finite predictions give a NaN loss if `nonfinite_observer` is set.

    Predictions that are not finite cannot be matched with boxes, so the criterion raises `FloatingPointError`.
    """

    @wraps(step)
    def training_step(module: DetectionModule, *args: Any) -> Any:
        try:
            return step(module, *args)
        except FloatingPointError as error:
            if module.nonfinite_observer is None:
                raise
            module.nonfinite_observer(error)
            return torch.full((), math.nan, device=module.device, requires_grad=True)

    return training_step  # type: ignore[return-value]


class DetectionModule(LightningModule):
    """Training of a detector; subclasses define `training_step`.

    Args:
        detector: Architecture to train from scratch.
        weights: Model file to start from, instead.
        optimizer: Settings of the optimizer.

    Attributes:
        selection: Weights that a fit saves: those of the `best` source validation, or the `last`.
        nonfinite_observer: Called with the error if predictions are not finite; `None` raises the error.
        run_seed: Seed of the run, set when training starts.

    Raises:
        ConfigError: Neither or both of `detector` and `weights` are given.
    """

    selection: Literal["best", "last"] = "best"
    nonfinite_observer: Callable[[FloatingPointError], None] | None = None
    run_seed: int

    def __init__(
        self,
        detector: Detector | None = None,
        weights: Path | None = None,
        optimizer: OptimizerSettings | None = None,
    ) -> None:
        super().__init__()
        if detector is None and weights is not None:
            detector = load(weights).train()
        elif detector is None or weights is not None:
            message = "Give either model.detector, to train from scratch, or model.weights, to start from a model file."
            raise ConfigError(message)
        self.detector = detector
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.criterion = SetCriterion(self.detector.class_loss)
        # Its own synchronisation gathers tensor by tensor and hangs if ranks have unequal numbers of frames.
        self.metric = MeanAveragePrecision(class_metrics=True, sync_on_compute=False)
        self.metric.warn_on_many_detections = False
        self._collected: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def detect(self, batch: Batch, targets: list[Targets] | None = None) -> Output:
        """Return the detector's output for a batch; `targets` add denoising queries."""
        images = self.detector.preprocessing.normalise(batch.images, batch.padding_mask)
        output: Output = self.detector(images, batch.padding_mask, targets)
        return output

    def supervised_loss(self, batch: Batch) -> Tensor:
        """Return the criterion's total on a labelled batch.

        Denoising noise depends on the seed of each target only, not on the rest of the batch.
        """
        return self.detection_loss(self.detect(batch, batch.targets), batch)

    def detection_loss(self, output: Output, batch: Batch, prefix: str = "train") -> Tensor:
        """Return the criterion's total for the output of a labelled batch, and log its parts."""
        return self.log_total(self.criterion(output, batch.targets), prefix, len(batch))

    def log_total(self, losses: dict[str, Tensor], prefix: str, batch_size: int) -> Tensor:
        """Return the sum of losses of any shape, and log each as `prefix/name`."""
        for name, value in losses.items():
            self.log(f"{prefix}/{name}", value.sum(), batch_size=batch_size)
        return torch.stack([value.sum() for value in losses.values()]).sum()

    def detections(self, batch: Batch) -> list[Detections]:
        """Return detections in pixels of the batch."""
        output = self.detect(batch)
        return self.detector.decode(output, output.sizes)

    def on_train_start(self) -> None:
        """Store the seed of the run."""
        self.run_seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout with the batch number, so that a resumed run drops the same units as an uninterrupted one."""
        number = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        torch.manual_seed(seed_of(self.run_seed, number, self.global_rank))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect detections and ground truth."""
        for found, ground_truth in zip(self.detections(batch), batch.targets, strict=True):
            predictions = {"boxes": found.boxes.cpu(), "scores": found.scores.cpu(), "labels": found.labels.cpu()}
            self._collected.append((predictions, _with_regions(ground_truth, len(self.detector.classes))))

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Detections]:
        """Return detections in pixels of the original images."""
        output = self.detect(batch)
        sizes = torch.tensor([frame.size for frame in batch.frames], device=output.sizes.device)
        return self.detector.decode(output, sizes)

    def on_validation_epoch_end(self) -> None:
        """Log average precision on the source's validation frames."""
        self._log_metric("val")

    def on_test_epoch_end(self) -> None:
        """Log average precision on the test frames."""
        self._log_metric("test")

    def _log_metric(self, prefix: str) -> None:
        pairs, self._collected = gathered(self._collected), []
        self.metric.update([predictions for predictions, _ in pairs], [ground_truth for _, ground_truth in pairs])
        result: dict[str, Any] = self.metric.compute()
        self.metric.reset()
        # torchmetrics returns -1 if there was nothing to measure.
        self.log(f"{prefix}/ap50", result["map_50"].clamp(min=0).to(self.device), prog_bar=True, sync_dist=True)
        self.log(f"{prefix}/map", result["map"].clamp(min=0).to(self.device), sync_dist=True)

    def trained_modules(self) -> dict[str, nn.Module]:
        """Return the modules by name that train besides the detector."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's parameter groups: backbone or not, with weight decay or not."""
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
            ConfigError: The schedule depends on the number of steps, and the training has no limit of steps.
        """
        total, schedule = self.trainer.estimated_stepping_batches, self.optimizer_settings.schedule
        if math.isinf(total) and schedule != "constant":
            message = (
                f"optimizer.schedule: {schedule} falls towards the end of the training, but the number of steps is "
                "unlimited. Set trainer.max_epochs or trainer.max_steps, or optimizer.schedule: constant."
            )
            raise ConfigError(message)
        # Lightning cannot clip gradients before a fused step with mixed precision.
        fused = str(self.trainer.precision) in ("32-true", "64-true")
        optimizer = torch.optim.AdamW(self.parameter_groups(), fused=fused)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.optimizer_settings.factor(step, float(total))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _with_regions(ground_truth: Targets, classes: int) -> dict[str, Tensor]:
    """Return one image's ground truth for the metric; ignored regions are crowd boxes of every class."""
    boxes = torch.cat([ground_truth.boxes, ground_truth.ignore.repeat(classes, 1)])
    region_labels = torch.arange(classes, device=ground_truth.labels.device).repeat_interleave(len(ground_truth.ignore))
    labels = torch.cat([ground_truth.labels, region_labels])
    crowd = (torch.arange(len(boxes)) >= len(ground_truth)).int()
    return {"boxes": boxes.cpu(), "labels": labels.cpu(), "iscrowd": crowd}
