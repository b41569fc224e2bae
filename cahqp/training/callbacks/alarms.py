"""Alarms: stop a training that goes wrong, with a message, and save the last good weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from cahqp.adaptation.all_gather import gathered
from cahqp.errors import CahqpError, ConfigError
from cahqp.training.base import DetectionModule
from cahqp.training.ca_hqp.gradient_share import PREFIX as SHARE_PREFIX
from cahqp.training.callbacks.alarm_rules import DiscriminatorRule, Finding, GradientShareRule, LabelRule
from cahqp.training.callbacks.failing_batch import load_failing, put_back, save_failing
from cahqp.training.callbacks.last_good import LastGood

_log = logging.getLogger(__name__)
_INTERVAL = 5  # steps between two readings of discriminator accuracies; each costs a pass over all logged values


class AlarmError(CahqpError):
    """Stopped training: the observation, the path of the last good weights, and the settings to change."""


class Alarms(Callback):
    """Stop a training that goes wrong, and save the last good weights as a model file.

    An adaptation is judged by its pseudo-labels and discriminators over whole windows of steps; the first window is the
    reference. Every training is judged by its loss.

    Args:
        window: Steps that are judged together.
        min_box_rate: Lowest pseudo-labels per frame, as a share of the first window's; `null` switches it off.
        max_box_rate: Highest pseudo-labels per frame, as a multiple of the first window's; `null` switches it off.
        class_drift: Largest Jensen-Shannon divergence, 0..1 bit, of the pseudo-labels' class shares from the first
            window's; `null` switches it off. It has no effect on a single class.
        discriminator_patience: Steps in a row for which a discriminator may be right on at least 99 % of both domains,
            or give the same answer to all; `null` switches it off.
        min_gradient_share: Lowest gradient of a term of CA-HQP, as a share of the detection gradient. Below it for two
            windows in a row the run warns and continues, because a weak term does no harm; `null` switches it off.
        finite: Stop if the loss is not finite, and save the batch.
        replay: File of such a batch. The first step uses this batch, prints its losses and ends the run. Repeat the
            command of the stopped run with this option and another --output.
    """

    def __init__(
        self,
        window: int = 50,
        min_box_rate: float | None = 0.1,
        max_box_rate: float | None = 6.0,
        class_drift: float | None = 0.25,
        discriminator_patience: int | None = 500,
        min_gradient_share: float | None = 0.01,
        finite: bool = True,
        replay: Path | None = None,
    ) -> None:
        _check(window, min_box_rate, max_box_rate, class_drift, discriminator_patience)
        if min_gradient_share is not None and not 0 <= min_gradient_share <= 1:
            message = f"alarms.min_gradient_share must lie in 0..1, or be null, got {min_gradient_share}."
            raise ConfigError(message)
        self.window, self.finite, self.replay = window, finite, replay
        self.labels = LabelRule(window, min_box_rate, max_box_rate, class_drift)
        self.discriminators = None if discriminator_patience is None else DiscriminatorRule(discriminator_patience)
        self.shares = None if min_gradient_share is None else GradientShareRule(min_gradient_share)
        self._counts: Tensor | None = None  # frames, then boxes by class
        self._steps = 0
        self._accuracies: dict[str, list[float]] = {}
        self._batch: Any = None
        self._nonfinite = ""

    def state_dict(self) -> dict[str, Any]:
        """Return the first window, the steps for which discriminators were stuck, and the windows with weak terms."""
        return {
            "first": self.labels.first,
            "stuck": {} if self.discriminators is None else self.discriminators.stuck,
            "weak": {} if self.shares is None else self.shares.weak,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of an interrupted run."""
        self.labels.first = list(state_dict["first"])
        if self.discriminators is not None:
            self.discriminators.stuck = dict(state_dict["stuck"])
        if self.shares is not None:
            self.shares.weak = dict(state_dict.get("weak", {}))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the weights, and observe predictions that are not finite."""
        self._good = LastGood(trainer)
        self._seed = torch.initial_seed()
        if isinstance(pl_module, DetectionModule) and (self.finite or self.replay is not None):
            pl_module.nonfinite_observer = self._observe_nonfinite

    def _observe_nonfinite(self, error: FloatingPointError) -> None:
        self._nonfinite = f" {error}"

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch; a replay overwrites it with the saved one."""
        if self.replay is not None:
            put_back(load_failing(self.replay), trainer, pl_module, batch)
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Stop if the loss is not finite; a replay always stops, with its losses.

        Raises:
            AlarmError: The loss is not finite, or this is a replay.
        """
        if self.replay is not None:
            raise AlarmError(_replay_message(self.replay, trainer, loss) + self._nonfinite)
        if not self.finite:
            return
        finite = trainer.strategy.reduce_boolean_decision(bool(torch.isfinite(loss.detach())), all=True)
        if not finite:
            path = self._good.folder / f"failing-rank{trainer.global_rank}.pt"
            save_failing(path, trainer, pl_module, self._good.average, self._batch, self._seed)
            happened = f"The loss of step {trainer.global_step} is not finite.{self._nonfinite} Its batch is in {path}"
            change = (
                f"To see which loss it is, run the command again with --alarms.replay={path} and another --output. "
                "Usually a lower model.optimizer.learning_rate or trainer.gradient_clip_val, or precision 32-true, "
                "fixes it; --alarms.finite=false switches this alarm off."
            )
            self._stop(trainer, Finding(happened, change))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the pseudo-labels of the step, and judge a full window.

        Raises:
            AlarmError: A rule is broken.
        """
        self._batch = None
        self._steps += 1
        assert isinstance(pl_module, DetectionModule)
        classes = pl_module.detector.classes
        if (labels := outputs.get("pseudo_labels")) is not None:
            # The counts stay on their device, so that no step waits for them.
            indices = torch.cat([target.labels for target in labels])
            row = torch.cat([indices.new_tensor([len(labels)]), torch.bincount(indices, minlength=len(classes))])
            self._counts = row if self._counts is None else self._counts + row
        if self.discriminators is not None and self._steps % min(_INTERVAL, self.window) == 0:
            self._read_accuracies(trainer)
        if self._steps < self.window:
            return
        if self._counts is not None:
            counts = trainer.strategy.reduce(self._counts.float(), reduce_op="sum")
            assert isinstance(counts, Tensor)
            frames, *boxes = counts.tolist()
            self._stop(trainer, self.labels.judge(frames, boxes, classes))
        if self.discriminators is not None:
            self._stop(trainer, self.discriminators.judge(self._gathered_accuracies(), self._steps))
        self._warn_of_weak_terms(trainer)
        self._good.keep(trainer.global_step)
        self._counts, self._steps, self._accuracies = None, 0, {}

    def _read_accuracies(self, trainer: Trainer) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith("discriminator/") and name.endswith(("_source", "_target")) and value.isfinite():
                self._accuracies.setdefault(name, []).append(float(value))

    def _gathered_accuracies(self) -> dict[str, list[float]]:
        """Return the accuracies of all processes; a process without instances in this window has none."""
        accuracies: dict[str, list[float]] = {}
        for name, values in gathered(sorted(self._accuracies.items())):
            accuracies.setdefault(name, []).extend(values)
        return accuracies

    def _warn_of_weak_terms(self, trainer: Trainer) -> None:
        if self.shares is None:
            return
        named = {
            name.removeprefix(SHARE_PREFIX): v for name, v in trainer.callback_metrics.items() if SHARE_PREFIX in name
        }
        for finding in self.shares.judge({name: float(value) for name, value in sorted(named.items())}):
            if trainer.is_global_zero:  # the shares of all processes are equal
                _log.warning("%s %s", finding.happened, finding.change)

    def _stop(self, trainer: Trainer, finding: Finding | None) -> None:
        if finding is not None:
            saved = self._good.write(trainer, finding.happened)
            message = f"{finding.happened}\n{saved}\n{finding.change}"
            raise AlarmError(message)


def _replay_message(replay: Path, trainer: Trainer, loss: Tensor) -> str:
    parts = {name: float(v) for name, v in sorted(trainer.callback_metrics.items()) if v.numel() == 1}
    scaler = getattr(trainer.precision_plugin, "scaler", None)  # 16-mixed has scaled the loss by now
    value = float(loss.detach()) / (1.0 if scaler is None else float(scaler.get_scale()))
    width = max(map(len, parts), default=0)
    lines = [f"  {name.ljust(width)}  {value:.6g}" for name, value in parts.items()]
    return "\n".join([f"The batch of {replay} has the loss {value:.6g}:", *lines, "Nothing was trained."])


def _check(
    window: int, min_box_rate: float | None, max_box_rate: float | None, drift: float | None, patience: int | None
) -> None:
    wrong = [f"alarms.window must be at least 1, got {window}."] if window < 1 else []
    if min_box_rate is not None and not 0 <= min_box_rate < 1:
        wrong.append(f"alarms.min_box_rate must be at least 0 and below 1, got {min_box_rate}.")
    if max_box_rate is not None and max_box_rate <= 1:
        wrong.append(f"alarms.max_box_rate must be above 1, got {max_box_rate}.")
    if drift is not None and not 0 <= drift <= 1:
        wrong.append(f"alarms.class_drift must lie in 0..1, got {drift}.")
    if patience is not None and patience < 1:
        wrong.append(f"alarms.discriminator_patience must be at least 1, got {patience}.")
    if wrong:
        raise ConfigError("\n".join(wrong))
