"""File of a batch whose loss is not finite, with everything that the loss depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from cahqp.errors import DataError
from cahqp.files import atomic_write
from cahqp.frame import Frame, View
from cahqp.structures import Batch, Targets
from cahqp.training.callbacks.ema import find_ema
from cahqp.training.distillation.loss import SoftTargets
from cahqp.training.distillation.views import SoftBatch

_TYPES = [Batch, Frame, SoftBatch, SoftTargets, Targets, View]


def save_failing(
    path: Path, trainer: Trainer, module: LightningModule, average: LightningModule | None, batch: Any, seed: int
) -> None:
    """Write a batch, the weights of its step, and the seeds of its noise.

    Args:
        path: Path of the file.
        trainer: Trainer that stops.
        module: Module in training.
        average: Averaged module, which labels the target frames; `None` in a training without one.
        batch: A `Batch`, a dictionary of them, or a `SoftBatch`.
        seed: Seed of the run.
    """
    saved = {
        "batch": batch,
        "module": module.state_dict(),
        "average": None if average is None else average.state_dict(),
        "seed": seed,
        "number": trainer.fit_loop.epoch_loop.batch_progress.total.ready,
        "step": trainer.global_step,
    }
    with atomic_write(path, "wb") as file:
        torch.save(saved, file)


def load_failing(path: Path) -> dict[str, Any]:
    """Read a file of `save_failing`.

    Raises:
        DataError: The file is missing.
    """
    if not path.is_file():
        message = f"--alarms.replay {path} does not exist. Use the path in the alarm's message."
        raise DataError(message)
    with torch.serialization.safe_globals(_TYPES):  # type: ignore[arg-type]
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved


def put_back(saved: dict[str, Any], trainer: Trainer, module: LightningModule, batch: Any) -> None:
    """Turn the step that is about to begin into the one that failed.

    Args:
        saved: Content of the file, from `load_failing`.
        trainer: Trainer in training, with the settings of the run that failed.
        module: Module that gets the weights.
        batch: Batch that gets the frames, in place.
    """
    module.load_state_dict(saved["module"])
    ema = find_ema(trainer)
    if ema is not None and saved["average"] is not None:
        ema.average.load_state_dict(saved["average"])
    module.run_seed = saved["seed"]
    trainer.fit_loop.epoch_loop.batch_progress.total.ready = saved["number"]
    if isinstance(batch, dict):
        batch.update({name: part.to(module.device) for name, part in saved["batch"].items()})
    else:
        vars(batch).update(vars(saved["batch"].to(module.device)))
