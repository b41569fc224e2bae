"""A batch that made a loss that is not finite: kept with all that the loss depends on, and put back."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from cahqp.errors import DataError
from cahqp.files import atomic_write
from cahqp.frame import Frame, View
from cahqp.structures import Batch, Targets
from cahqp.training.callbacks.ema import EMA
from cahqp.training.distillation.loss import SoftTargets
from cahqp.training.distillation.views import SoftBatch


def save_failing(
    path: Path, trainer: Trainer, module: LightningModule, average: LightningModule | None, batch: Any, seed: int
) -> None:
    """Write a batch, the weights that met it, and the seeds of its noise: plain tensors and values.

    Args:
        path: Where to.
        trainer: In training.
        module: In training.
        average: Labels the target frames; `None` in a training without one.
        batch: A `Batch`, a dictionary of them, or a `SoftBatch`.
        seed: Of the run.
    """
    kept = {
        "soft": vars(batch.soft) if isinstance(batch, SoftBatch) and batch.soft is not None else None,
        "batch": {name: _plain(part) for name, part in _parts(batch).items()},
        "module": module.state_dict(),
        "average": None if average is None else average.state_dict(),
        "seed": seed,
        "number": trainer.fit_loop.epoch_loop.batch_progress.total.ready,
        "step": trainer.global_step,
    }
    with atomic_write(path, "wb") as file:
        torch.save(kept, file)


def load_failing(path: Path) -> dict[str, Any]:
    """Read what `save_failing` wrote.

    Raises:
        DataError: It is not there.
    """
    if not path.is_file():
        message = f"--alarms.replay {path} does not exist. An alarm names the file it wrote."
        raise DataError(message)
    kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return kept


def put_back(kept: dict[str, Any], trainer: Trainer, module: LightningModule, batch: Any) -> None:
    """Make a step that is about to begin the one that failed.

    Args:
        kept: From `load_failing`.
        trainer: In training, with the settings of the run that failed.
        module: Takes the weights.
        batch: Takes the frames, in place.
    """
    module.load_state_dict(kept["module"])
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EMA) and kept["average"] is not None:
            callback.average.load_state_dict(kept["average"])
    module._seed = kept["seed"]
    trainer.fit_loop.epoch_loop.batch_progress.total.ready = kept["number"]
    for name, part in _parts(batch).items():
        whole = _whole(kept["batch"][name]).to(part.images.device)
        for field in fields(Batch):
            setattr(part, field.name, getattr(whole, field.name))
    if isinstance(batch, SoftBatch) and batch.soft is not None:
        batch.soft = SoftTargets(**kept["soft"]).to(batch.batch.images.device)


def _parts(batch: Any) -> dict[str, Batch]:
    if isinstance(batch, SoftBatch):
        return {"batch": batch.batch} | ({} if batch.asked is None else {"asked": batch.asked})
    return {"batch": batch} if isinstance(batch, Batch) else dict(batch)


def _plain(batch: Batch) -> dict[str, Any]:
    """Return a batch as what `torch.load(weights_only=True)` reads."""
    frames = [{**vars(frame), "view": None if frame.view is None else vars(frame.view)} for frame in batch.frames]
    targets = [{field.name: getattr(target, field.name) for field in fields(Targets)} for target in batch.targets]
    return {"images": batch.images, "padding_mask": batch.padding_mask, "targets": targets, "frames": frames}


def _whole(plain: dict[str, Any]) -> Batch:
    frames = [
        Frame(**{**frame, "view": None if frame["view"] is None else View(**frame["view"])})
        for frame in plain["frames"]
    ]
    targets = [Targets(**target) for target in plain["targets"]]
    return Batch(plain["images"], plain["padding_mask"], targets, frames)
