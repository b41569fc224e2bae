"""Copy of the last good weights, saved if a run has to be stopped."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cahqp.detectors import model_file
from cahqp.detectors.base import Detector
from cahqp.training.callbacks.ema import find_ema

FILE = "last_good.safetensors"


class LastGood:
    """Copy of the averaged detector in memory, written to disk on demand.

    Args:
        trainer: Trainer in training; its EMA callback owns the average.

    Attributes:
        folder: Folder of the files, inside `checkpoints/`, which no manifest lists.
        average: The averaged module; `None` in a training without one.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints" / "alarm"
        ema = find_ema(trainer)
        self.average: LightningModule | None = None if ema is None else ema.average
        module = trainer.lightning_module if self.average is None else self.average
        detector = module.detector
        assert isinstance(detector, Detector)
        self._detector = detector
        self.keep(trainer.global_step)

    def keep(self, step: int) -> None:
        """Copy the current weights, unless one is not finite: then the previous copy stays.

        Args:
            step: Number of steps that trained the weights.
        """
        state: dict[str, Tensor] = {k: v.detach().cpu().clone() for k, v in self._detector.state_dict().items()}
        if all(bool(torch.isfinite(value).all()) for value in state.values()):
            self.step, self._state = step, state

    def write(self, trainer: Trainer, reason: str) -> str:
        """Write the copy as a model file on rank zero, and return a sentence with its path.

        Args:
            trainer: Trainer that stops.
            reason: Why the run was stopped; stored in the file.
        """
        path = self.folder / FILE
        if trainer.is_global_zero:
            detector = copy.deepcopy(self._detector).cpu()
            detector.load_state_dict(self._state)
            provenance = {"command": "fit", "parent": detector.provenance.get("hash"), "steps": self.step}
            model_file.save(path, detector, {**provenance, "stopped": reason})
        return f"The last good weights, of step {self.step}: {path}"
