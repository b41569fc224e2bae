"""Rules of the alarms, judged over whole windows of steps. Imports no Lightning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

ALWAYS, NEVER = 0.99, 0.01
"""Accuracies at which a discriminator no longer learns: at least the first, or at most the second."""

MIN_BOXES = 20
"""Number of boxes below which class shares are mostly chance."""


WEAK_WINDOWS = 2
"""Windows in a row after which a weak term is reported: a share of one step varies by chance."""


@dataclass(frozen=True)
class Finding:
    """Reason to stop a training, or to warn.

    Attributes:
        happened: Observation.
        change: Settings to change.
    """

    happened: str
    change: str


@dataclass
class LabelRule:
    """Limits on the number and the classes of pseudo-labels, relative to the first window.

    Attributes:
        window: Steps of a window.
        min_box_rate: Lowest boxes per frame, as a share of the first window's; `None` for no limit.
        max_box_rate: Highest boxes per frame, as a multiple of the first window's; `None` for no limit.
        class_drift: Largest Jensen-Shannon divergence of class shares in bits; `None` for no limit.
        first: Boxes per frame of the first window, then its boxes by class.
    """

    window: int
    min_box_rate: float | None
    max_box_rate: float | None
    class_drift: float | None
    first: list[float] = field(default_factory=list)

    def judge(self, frames: float, boxes: Sequence[float], classes: Sequence[str]) -> Finding | None:
        """Judge one window; the first one becomes the reference.

        Args:
            frames: Number of labelled frames.
            boxes: Number of boxes by class.
            classes: Names of the classes.
        """
        rate, is_first = sum(boxes) / frames, not self.first
        if is_first:
            if rate == 0 and self.min_box_rate is not None:
                return _wrong_count(f"No pseudo-label was found in the first {self.window} steps.", "Lower")
            self.first = [rate, *boxes]
        reference = self.first[0]
        happened = f"Pseudo-labels went from {reference:.2f} a frame in the first {self.window} steps to {rate:.2f}"
        if self.min_box_rate is not None and rate < self.min_box_rate * reference:
            happened += f": they fall to nothing (alarms.min_box_rate: {self.min_box_rate})."
            return _wrong_count(happened, "Lower")
        if self.max_box_rate is not None and reference and rate > self.max_box_rate * reference:
            return _wrong_count(f"{happened}: they explode (alarms.max_box_rate: {self.max_box_rate}).", "Raise")
        return None if self.class_drift is None or is_first else self._judge_shares(self.class_drift, boxes, classes)

    def _judge_shares(self, limit: float, boxes: Sequence[float], classes: Sequence[str]) -> Finding | None:
        first = self.first[1:]
        if sum(first) < MIN_BOXES:  # further windows join the reference until it has enough boxes
            self.first[1:] = [a + b for a, b in zip(first, boxes, strict=True)]
            return None
        if len(boxes) < 2 or sum(boxes) < MIN_BOXES:
            return None
        drift = divergence(first, boxes)
        if drift <= limit:
            return None
        shares = ", ".join(
            f"{name} {100 * a / sum(first):.0f} -> {100 * b / sum(boxes):.0f} %"
            for name, a, b in zip(classes, first, boxes, strict=True)
        )
        return Finding(
            f"The classes of the pseudo-labels drift: {shares}. The divergence from the first windows is {drift:.2f} "
            f"(alarms.class_drift: {limit}).",
            "Raise the thresholds of the classes that grow (model.pseudo_labels.threshold), or lower the learning "
            "rate. If the target's traffic really is that different, raise the limit or set it to null.",
        )


@dataclass
class DiscriminatorRule:
    """Limit on the steps for which a discriminator is always right, or gives one answer to both domains.

    Attributes:
        patience: Steps in a row.
        stuck: Steps in a row so far, by discriminator.
    """

    patience: int
    stuck: dict[str, int] = field(default_factory=dict)

    def judge(self, accuracies: Mapping[str, Sequence[float]], steps: int) -> Finding | None:
        """Judge one window.

        Args:
            accuracies: Accuracies of all processes by logged name, such as `discriminator/instance_source`.
            steps: Steps of the window.
        """
        for name in sorted({name.rpartition("_")[0] for name in accuracies}):
            pair = [accuracies.get(f"{name}_{domain}") for domain in ("source", "target")]
            means = [sum(values) / len(values) for values in pair if values]
            wins = len(means) == 2 and min(means) >= ALWAYS
            gives_up = len(means) == 2 and max(means) >= ALWAYS and min(means) <= NEVER
            self.stuck[name] = self.stuck.get(name, 0) + steps if wins or gives_up else 0
            if self.stuck[name] >= self.patience:
                return self._finding(name, wins)
        return None

    def _finding(self, name: str, wins: bool) -> Finding:
        did = "separated the domains without error" if wins else "gave one answer to both domains"
        change = (
            "Raise model.alignment.reversal or the branch's weight, or lower model.alignment.discriminator_factor."
            if wins
            else "Lower model.alignment.reversal, or raise model.alignment.discriminator_factor."
        )
        return Finding(
            f"The {name.replace('/', ' ')} {did} for {self.stuck[name]} steps (alarms.discriminator_patience).",
            f"{change} The branch's weight 0 switches it off; patience null switches this alarm off.",
        )


@dataclass
class GradientShareRule:
    """Lower limit of a term's gradient share; see `cahqp.training.ca_hqp.gradient_share`.

    A weak term does no harm, so its finding is a warning: stopping would lose a good training.

    Attributes:
        limit: Lowest share.
        weak: Windows in a row below the limit, by term.
    """

    limit: float
    weak: dict[str, int] = field(default_factory=dict)

    def judge(self, shares: Mapping[str, float]) -> list[Finding]:
        """Judge one window, and return the terms that now are below the limit for the second window in a row.

        Args:
            shares: Last share of each term that is on, by the term's name.
        """
        self.weak = {name: self.weak.get(name, 0) + 1 for name, share in shares.items() if share < self.limit}
        return [
            _weak_term(name, shares[name], self.limit) for name, count in self.weak.items() if count == WEAK_WINDOWS
        ]


def _weak_term(name: str, share: float, limit: float) -> Finding:
    change = (
        "Raise model.optimizer.learning_rate, or set model.prompt.enabled: false."
        if name == "prompt"
        else f"Raise model.alignment.{name} or model.alignment.reversal, or set model.alignment.{name}: 0."
    )
    return Finding(
        f"The gradient of {name} is {100 * share:.2g} % of the detection gradient for {WEAK_WINDOWS} windows "
        f"(alarms.min_gradient_share: {limit}): it has next to no effect, and this run proves nothing about it.",
        f"{change} alarms.min_gradient_share null switches this warning off.",
    )


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


def _wrong_count(happened: str, verb: str) -> Finding:
    change = (
        f"{verb} model.pseudo_labels.threshold, or lower the learning rate. Check the target frames: a covered or "
        "unplugged camera has this effect, and so has model.pseudo_labels.stationary_weight below 1 where most road "
        "users are parked. Set the limit to null to continue regardless."
    )
    return Finding(happened, change)
