"""Exponential moving average (EMA) of a model, which is validated, saved, published, and labels target frames."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from cahqp.errors import ConfigError


def find_ema(trainer: Trainer) -> EMA | None:
    """Return the trainer's EMA callback; `None` if it has none."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, EMA)), None)


class EMA(WeightAveraging):
    """Average the weights after every optimizer step.

    Differences from Lightning's own callback: integer buffers are copied, not averaged; validation before the first
    update uses the model itself; testing in the process that trained keeps the average; checkpoints that would contain
    the raw weights are refused.

    Args:
        decay: Share of the old average kept per step, 0 (no averaging) to below 1.
        warmup: Steps over which the decay grows, as decay * (1 - exp(-n / warmup)) (RT-DETR). Use zero if training
            starts from good weights.
    """

    def __init__(self, decay: float = 0.999, warmup: int = 0) -> None:
        if not 0 <= decay < 1:
            message = f"ema.decay must be at least 0 and below 1, got {decay}."
            raise ConfigError(message)
        self.decay, self.warmup = decay, warmup
        super().__init__(use_buffers=True, multi_avg_fn=self._average)

    @property
    def average(self) -> LightningModule:
        """The averaged module; read it, never train it."""
        if self._average_model is None:
            message = "The average exists only while fitting."
            raise RuntimeError(message)
        module = self._average_model.module
        assert isinstance(module, LightningModule)
        return module

    def _average(self, averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        """Move tensors of one type towards the current ones, in place."""
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        ramp = 1 - math.exp(-int(updates) / self.warmup) if self.warmup else 1.0
        torch._foreach_lerp_(averaged, current, 1 - self.decay * ramp)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the average.

        Raises:
            ConfigError: A checkpoint callback would not save the average.
        """
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(c, ModelCheckpoint) and c.save_weights_only for c in callbacks):
            message = "ModelCheckpoint(save_weights_only=True) saves the raw weights, not the average: unset it."
            raise ConfigError(message)
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.requires_grad_(False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average to the model's device; Lightning creates it before it moves the model."""
        if self._average_model is not None:
            self._average_model.to(pl_module.device)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the average to the model, also if a resumed training had nothing left to train."""
        if self._average_model is not None:
            self._copy_average_to_current(pl_module)

    def _has_updates(self) -> bool:
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap in the average, after its first update."""
        if self._has_updates():
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the model in training back in."""
        if self._has_updates():
            super().on_validation_epoch_end(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore both models when training resumes; testing uses the average, which is the state dict itself."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
