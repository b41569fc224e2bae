"""Alarms: an adaptation that goes wrong is stopped, says so, and leaves the last good weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from cahqp.adaptation.all_gather import gathered
from cahqp.errors import CahqpError, ConfigError
from cahqp.structures import Targets
from cahqp.training.ca_hqp.module import TeacherAdaptation
from cahqp.training.callbacks.failing_batch import load_failing, put_back, save_failing
from cahqp.training.callbacks.last_good import LastGood

ALWAYS, NEVER = 0.99, 0.01
"""Shares of right answers from and up to which a discriminator no longer plays the game."""

FEWEST_FOR_SHARES = 20
"""Boxes below which class shares are mostly chance."""

_LOOK_EVERY = 5  # steps between two looks at the discriminators at most; each costs a pass over all logged values


class AlarmError(CahqpError):
    """Training was stopped: what happened, where the last good weights are, and what to change."""


class Alarms(Callback):
    """Stop a training that goes wrong, and keep the last good weights as a model file.

    The counts, the class shares and the discriminators are watched in an adaptation; that the loss is finite, in every
    training. What is watched is judged over whole windows of steps, the first of which is the measure of the others.

    Args:
        window: Steps that are judged together.
        min_box_rate: Pseudo-labels per frame, as a share of the first window's, below which they count as gone; `null`
            switches it off.
        max_box_rate: The same as a multiple, above which they count as exploded; `null` switches it off.
        class_drift: Greatest Jensen-Shannon divergence, 0..1 bit, of the pseudo-labels' class shares from the first
            window's; `null` switches it off. It is off by itself for a single class.
        discriminator_patience: Steps in a row for which a discriminator may be right on at least 99 % of both domains,
            or give one answer to all; `null` switches it off.
        finite: Stop where the loss is not finite, and save the batch.
        replay: File of such a batch. The first step is made from it, its losses are printed, and the run ends: give
            the stopped run's command with this and another --output.
    """

    def __init__(
        self,
        window: int = 50,
        min_box_rate: float | None = 0.1,
        max_box_rate: float | None = 6.0,
        class_drift: float | None = 0.25,
        discriminator_patience: int | None = 500,
        finite: bool = True,
        replay: Path | None = None,
    ) -> None:
        _check(window, min_box_rate, max_box_rate, class_drift, discriminator_patience)
        self.window, self.min_box_rate, self.max_box_rate, self.class_drift = (
            window,
            min_box_rate,
            max_box_rate,
            class_drift,
        )
        self.discriminator_patience, self.finite, self.replay = discriminator_patience, finite, replay
        self.first: list[float] = []  # boxes per frame of the first window, then its boxes by class
        self.stuck: dict[str, int] = {}  # steps in a row, by discriminator
        self._counts: Tensor | None = None
        self._steps = 0
        self._answers: dict[str, list[float]] = {}
        self._batch: Any = None
        self._raised = ""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know: the first window, and for how long discriminators were stuck."""
        return {"first": self.first, "stuck": self.stuck}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what an interrupted run knew."""
        self.first, self.stuck = list(state_dict["first"]), dict(state_dict["stuck"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights as they are, and listen to the pseudo-labels."""
        self._good = LastGood(trainer)
        self._seed = torch.initial_seed()
        self._catch(pl_module)
        if isinstance(pl_module, TeacherAdaptation):
            self._listen(pl_module)

    def _catch(self, module: LightningModule) -> None:
        """Let predictions that are not finite, which no matching can take, end in a loss that is not finite."""
        step = module.training_step

        def caught(*args: Any, **kwargs: Any) -> Any:
            try:
                return step(*args, **kwargs)
            except FloatingPointError as error:
                if not self.finite and self.replay is None:
                    raise
                self._raised = f" {error}"
                return torch.full((), math.nan, device=module.device, requires_grad=True)

        module.training_step = caught  # type: ignore[method-assign]

    def _listen(self, module: TeacherAdaptation) -> None:
        label, classes = module.label, len(module.detector.classes)

        def heard(*args: Any, **kwargs: Any) -> Any:
            labels = label(*args, **kwargs)
            self._count(labels, classes)
            return labels

        module.label = heard  # type: ignore[method-assign]

    def _count(self, labels: Sequence[Targets], classes: int) -> None:
        """Add one batch: frames, then boxes by class; on their device, so that nothing waits for it."""
        found = torch.cat([target.labels for target in labels])
        row = torch.cat([found.new_tensor([len(labels)]), torch.bincount(found, minlength=classes)])
        self._counts = row if self._counts is None else self._counts + row

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch; in a replay, put the saved one in its place."""
        if self.replay is not None:
            put_back(load_failing(self.replay), trainer, pl_module, batch)
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Stop where the loss is not finite; in a replay, tell the losses and stop.

        Raises:
            AlarmError: The loss is not finite, or this was a replay.
        """
        if self.replay is not None:
            raise AlarmError(_told(self.replay, trainer, loss) + self._raised)
        if not self.finite:
            return
        fine = trainer.strategy.reduce_boolean_decision(bool(torch.isfinite(loss.detach())), all=True)
        if not fine:
            path = self._good.folder / f"failing-rank{trainer.global_rank}.pt"
            save_failing(path, trainer, pl_module, self._good.average, self._batch, self._seed)
            happened = f"The loss of step {trainer.global_step} is not finite.{self._raised} Its batch is kept: {path}"
            change = (
                f"Run the command again with --alarms.replay={path} and another --output to see which part it is. "
                "Usually a lower model.optimizer.learning_rate or trainer.gradient_clip_val, or precision 32-true, "
                "mends it; --alarms.finite=false switches this alarm off."
            )
            self._stop(trainer, happened, change)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge a window when it is full.

        Raises:
            AlarmError: Something is wrong with it.
        """
        self._batch = None
        self._steps += 1
        if self.discriminator_patience is not None and self._steps % min(_LOOK_EVERY, self.window) == 0:
            self._look(trainer)
        if self._steps < self.window:
            return
        if self._counts is not None:
            assert isinstance(pl_module, TeacherAdaptation)
            self._judge_labels(trainer, pl_module.detector.classes)
        if self.discriminator_patience is not None:
            self._judge_discriminators(trainer)
        self._good.keep(trainer.global_step)
        self._counts, self._steps, self._answers = None, 0, {}

    def _judge_labels(self, trainer: Trainer, classes: Sequence[str]) -> None:
        assert self._counts is not None
        counts = trainer.strategy.reduce(self._counts.float(), reduce_op="sum")
        assert isinstance(counts, Tensor)
        frames, *boxes = counts.tolist()
        rate = sum(boxes) / frames
        begun = bool(self.first)
        if not begun:
            if rate == 0 and self.min_box_rate is not None:
                self._stop_for_count(trainer, f"No pseudo-label was found in the first {self.window} steps.", "Lower")
            self.first = [rate, *boxes]
        before = self.first[0]
        told = f"Pseudo-labels went from {before:.2f} a frame in the first {self.window} steps to {rate:.2f}"
        if self.min_box_rate is not None and rate < self.min_box_rate * before:
            self._stop_for_count(
                trainer, f"{told}: they fall to nothing (alarms.fewest: {self.min_box_rate}).", "Lower"
            )
        if self.max_box_rate is not None and before and rate > self.max_box_rate * before:
            self._stop_for_count(trainer, f"{told}: they explode (alarms.most: {self.max_box_rate}).", "Raise")
        if self.class_drift is not None and begun:
            self._judge_shares(trainer, boxes, classes)

    def _stop_for_count(self, trainer: Trainer, happened: str, verb: str) -> None:
        change = (
            f"{verb} model.pseudo_labels.threshold, or lower the learning rate; look at the target frames too: a "
            "covered or unplugged camera ends like this, and where most road users are parked, so does "
            "model.pseudo_labels.stationary_weight below 1. Set the limit to null to go on regardless."
        )
        self._stop(trainer, happened, change)

    def _judge_shares(self, trainer: Trainer, boxes: Sequence[float], classes: Sequence[str]) -> None:
        first = self.first[1:]
        if sum(first) < FEWEST_FOR_SHARES:  # as many windows as it takes say what is usual
            self.first[1:] = [a + b for a, b in zip(first, boxes, strict=True)]
            return
        if len(boxes) < 2 or sum(boxes) < FEWEST_FOR_SHARES:
            return
        drift = divergence(first, boxes)
        assert self.class_drift is not None
        if drift <= self.class_drift:
            return
        shares = ", ".join(
            f"{name} {100 * a / sum(first):.0f} -> {100 * b / sum(boxes):.0f} %"
            for name, a, b in zip(classes, first, boxes, strict=True)
        )
        happened = (
            f"The classes of the pseudo-labels drift: {shares}. Their divergence from what they were at first is "
            f"{drift:.2f} (alarms.class_drift: {self.class_drift})."
        )
        change = (
            "Raise the thresholds of the classes that grow (model.pseudo_labels.threshold), or lower the learning "
            "rate. If the target's traffic really is that different, raise the limit or set it to null."
        )
        self._stop(trainer, happened, change)

    def _look(self, trainer: Trainer) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith("discriminator/") and name.endswith(("_source", "_target")) and value.isfinite():
                self._answers.setdefault(name, []).append(float(value))

    def _judge_discriminators(self, trainer: Trainer) -> None:
        # Of all ranks: one that had no instance in this window has nothing to say of them.
        answers: dict[str, list[float]] = {}
        for name, values in gathered(sorted(self._answers.items())):
            answers.setdefault(name, []).extend(values)
        for name in sorted({name.rpartition("_")[0] for name in answers}):
            pair = [answers.get(f"{name}_{domain}") for domain in ("source", "target")]
            known = [sum(values) / len(values) for values in pair if values]
            wins = len(known) == 2 and min(known) >= ALWAYS
            gives_up = len(known) == 2 and max(known) >= ALWAYS and min(known) <= NEVER
            self.stuck[name] = self.stuck.get(name, 0) + self._steps if wins or gives_up else 0
            assert self.discriminator_patience is not None
            if self.stuck[name] >= self.discriminator_patience:
                self._stop_for_discriminator(trainer, name, wins)

    def _stop_for_discriminator(self, trainer: Trainer, name: str, wins: bool) -> None:
        did = "told the domains apart without error" if wins else "gave one answer to both domains"
        happened = f"The {name.replace('/', ' ')} {did} for {self.stuck[name]} steps (alarms.discriminator_patience)."
        change = (
            "It wins: raise model.alignment.reversal or the branch's weight, or lower discriminator_factor."
            if wins
            else "It has given up: lower model.alignment.reversal or raise model.alignment.discriminator_factor."
        )
        self._stop(trainer, happened, f"{change} The branch's weight 0 switches it off; patience null, this alarm.")

    def _stop(self, trainer: Trainer, happened: str, change: str) -> None:
        kept = self._good.write(trainer, happened)
        message = f"{happened}\n{kept}\n{change}"
        raise AlarmError(message)


def divergence(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the Jensen-Shannon divergence of two sets of counts in bits: 0 for equal shares, 1 for none in common.

    Args:
        first: Counts, not all of them zero.
        second: The same number of counts, not all of them zero.
    """
    p, q = (torch.tensor(x, dtype=torch.float64) / sum(x) for x in (first, second))
    middle = (p + q) / 2
    parts = [torch.special.xlogy(x, x / middle.clamp(min=1e-300)).sum() / 2 for x in (p, q)]
    return float(sum(parts) / torch.tensor(2.0).log())


def _told(replay: Path, trainer: Trainer, loss: Tensor) -> str:
    parts = {name: float(v) for name, v in sorted(trainer.callback_metrics.items()) if v.numel() == 1}
    scaler = getattr(trainer.precision_plugin, "scaler", None)  # of 16-mixed, which has multiplied the loss by then
    value = float(loss.detach()) / (1.0 if scaler is None else float(scaler.get_scale()))
    width = max(map(len, parts), default=0)
    lines = [f"  {name.ljust(width)}  {value:.6g}" for name, value in parts.items()]
    return "\n".join([f"The batch of {replay} gives the loss {value:.6g}:", *lines, "Nothing was trained."])


def _check(
    window: int, min_box_rate: float | None, max_box_rate: float | None, drift: float | None, patience: int | None
) -> None:
    wrong = [f"alarms.window must be at least 1, got {window}."] if window < 1 else []
    if min_box_rate is not None and not 0 <= min_box_rate < 1:
        wrong.append(f"alarms.fewest must be at least 0 and below 1, got {min_box_rate}.")
    if max_box_rate is not None and max_box_rate <= 1:
        wrong.append(f"alarms.most must be above 1, got {max_box_rate}.")
    if drift is not None and not 0 <= drift <= 1:
        wrong.append(f"alarms.class_drift must lie in 0..1, got {drift}.")
    if patience is not None and patience < 1:
        wrong.append(f"alarms.discriminator_patience must be at least 1, got {patience}.")
    if wrong:
        raise ConfigError("\n".join(wrong))
