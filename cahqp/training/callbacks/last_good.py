"""The last weights that were found in order, for the run that has to be stopped."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cahqp.detectors import model_file
from cahqp.detectors.base import Detector
from cahqp.training.callbacks.ema import EMA

FILE = "last_good.safetensors"


class LastGood:
    """A copy of the averaged detector in memory, written only when it is needed.

    Args:
        trainer: In training; its EMA callback owns the average.

    Attributes:
        folder: Where files go: below `checkpoints/`, which no manifest answers for.
        average: The averaged module, or `None` in a training without one.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints" / "alarm"
        callbacks = [c for c in trainer.callbacks if isinstance(c, EMA)]  # type: ignore[attr-defined]
        self.average: LightningModule | None = callbacks[0].average if callbacks else None
        module = trainer.lightning_module if self.average is None else self.average
        detector = module.detector
        assert isinstance(detector, Detector)
        self._detector = detector
        self.keep(trainer.global_step)

    def keep(self, step: int) -> None:
        """Copy the weights as they are, unless one is not a number: then the copy before is the last good one.

        Args:
            step: How many steps they have seen.
        """
        state: dict[str, Tensor] = {k: v.detach().cpu().clone() for k, v in self._detector.state_dict().items()}
        if all(bool(torch.isfinite(value).all()) for value in state.values()):
            self.step, self._state = step, state

    def write(self, trainer: Trainer, reason: str) -> str:
        """Write the copy as a model file and say where it is.

        Args:
            trainer: Rank zero writes.
            reason: Why the run was stopped; kept in the file.
        """
        path = self.folder / FILE
        if trainer.is_global_zero:
            detector = copy.deepcopy(self._detector).cpu()
            detector.load_state_dict(self._state)
            provenance = {"command": "fit", "parent": detector.provenance.get("hash"), "steps": self.step}
            model_file.save(path, detector, {**provenance, "stopped": reason})
        return f"The last good weights, of step {self.step}: {path}"
