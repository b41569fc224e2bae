"""Whether a candidate may replace what runs: a pure function of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any, Literal

from scipy.stats import norm, t

from cahqp.errors import ConfigError
from cahqp.gate.options import GateLimits

Role = Literal["source", "replay", "canary"]
CONFIDENCE = 0.95
_DIGITS = 6


@dataclass(frozen=True)
class Operating:
    """Candidate and running package at the thresholds that each of them runs with.

    Attributes:
        candidate: F1 of the candidate in 0..1, mean over classes.
        running: F1 of the running package.
        high: Upper 95 % bound of the difference, widened for few groups like `lower_bound`.
    """

    candidate: float
    running: float
    high: float

    @property
    def difference(self) -> float:
        """How much the candidate is ahead."""
        return self.candidate - self.running


@dataclass(frozen=True)
class SetEvidence:
    """Candidate and running package on one labelled set.

    Attributes:
        name: Of the set.
        role: What kind of set it is.
        candidate: AP50 of the candidate in 0..1.
        running: AP50 of the running package.
        low: Lower 95 % bound of the difference, see `lower_bound`.
        unit: What the bootstrap drew: recordings, or blocks of frames.
        groups: How many there were.
        classes: By class name the difference and its upper 95 % bound.
        too_few: Classes of which the set has too few objects to judge; they count in none of the figures.
        operating: The same at the packages' own thresholds; `None` where they have none.
    """

    name: str
    role: Role
    candidate: float
    running: float
    low: float
    unit: str
    groups: int
    classes: Mapping[str, tuple[float, float]]
    too_few: tuple[str, ...] = ()
    operating: Operating | None = None

    @property
    def difference(self) -> float:
        """How much the candidate is ahead."""
        return self.candidate - self.running


@dataclass(frozen=True)
class RuntimeCost:
    """What a package costs where it runs.

    Attributes:
        milliseconds: Median time of one run.
        megabytes: Size of its model.
    """

    milliseconds: float
    megabytes: float


def lower_bound(difference: float, low: float, groups: int) -> float:
    """Return the one-sided lower 95 % bound of a difference, honest for few groups.

    The bootstrap's 5 % quantile is too close to the difference where few groups were drawn: its spread lacks a factor
    sqrt(n / (n - 1)), and it knows nothing of Student's t (Efron and Tibshirani, An Introduction to the Bootstrap,
    chapter 12). Both factors widen it: by 1.18 for ten groups, by 1.04 for forty.

    Args:
        difference: As measured.
        low: The 5 % quantile of the paired bootstrap.
        groups: Number of recordings or blocks that were drawn.
    """
    if groups < 2:
        return float("-inf")
    widened = float(t.ppf(CONFIDENCE, groups - 1) / norm.ppf(CONFIDENCE)) * sqrt(groups / (groups - 1))
    return difference - (difference - low) * widened


def check_sets(roles: Sequence[str]) -> None:
    """Refuse to decide without labels that may decide.

    Raises:
        ConfigError: There is neither a labelled source nor a canary set.
    """
    if "source" not in roles and "canary" not in roles:
        message = (
            "Without --source the gate needs a --canary: some labelled frames, 100 or so, on which a candidate is "
            "measured before it runs."
        )
        raise ConfigError(message)


def decide(
    sets: Sequence[SetEvidence], limits: GateLimits, candidate: RuntimeCost, running: RuntimeCost
) -> dict[str, Any]:
    """Weigh a candidate.

    It is published if on every set the lower 95 % bound of its difference in AP50 lies above `-loss`, its mean is not
    below the running one's (on the canary sets where there are any, else over all sets), neither a class nor what it
    detects at its own thresholds is lost, and it is neither too slow nor too large.

    Returns:
        `published`, `reason` in one sentence, `reasons` (every one against it), and the figures, all but times.

    Raises:
        ConfigError: There is neither a labelled source nor a canary set.
    """
    check_sets([one.role for one in sets])
    against = [reason for one in sets for reason in _against_set(one, limits)]
    judges = [one for one in sets if one.role == "canary"] or list(sets)
    mean = sum(one.difference for one in judges) / len(judges)
    where = "the canary" if judges[0].role == "canary" else f"{len(judges)} set{'s' * (len(judges) != 1)}"
    if mean < 0:
        against.append(f"its mean AP50 over {where} is {-100 * mean:.1f} points below the running one's")
    against += _against_cost(limits, candidate, running)
    gain = f"{100 * mean:+.1f} points of AP50 over {where}"
    reason = f"Kept the running version: {'; '.join(against)}." if against else f"Published: {gain}."
    return {
        "published": not against,
        "reason": reason,
        "reasons": against,
        "mean_difference": round(mean, _DIGITS),
        "limits": asdict(limits),
        "sets": {one.name: _figures(one) for one in sets},
    }


def refuse(reason: str, limits: GateLimits) -> dict[str, Any]:
    """Return the decision about a candidate that could not be measured at all."""
    said = f"Kept the running version: {reason}"
    return {
        "published": False, "reason": said, "reasons": [reason], "mean_difference": None, "limits": asdict(limits),
        "sets": {},
    }  # fmt: skip


def _against_set(one: SetEvidence, limits: GateLimits) -> list[str]:
    against = []
    if not one.low > -limits.max_ap50_drop:
        against.append(
            f"on {one.name} it may be {-100 * one.low:.1f} points of AP50 below the running one (allowed: "
            f"{100 * limits.max_ap50_drop:g}; measured {100 * one.difference:+.1f} on {one.groups} {one.unit})"
        )
    for name, (difference, high) in one.classes.items():
        if difference < -limits.max_class_ap50_drop and high < 0:
            against.append(f"on {one.name} it loses {-100 * difference:.1f} points of AP50 of {name}")
    at_work = one.operating
    if at_work is not None and at_work.difference < -limits.max_class_ap50_drop and at_work.high < 0:
        against.append(
            f"on {one.name} its F1 at its own thresholds is {-100 * at_work.difference:.1f} points below the running "
            f"one's (allowed: {100 * limits.max_class_ap50_drop:g})"
        )
    return against


def _against_cost(limits: GateLimits, candidate: RuntimeCost, running: RuntimeCost) -> list[str]:
    against = []
    slowest = min(limits.max_slowdown * running.milliseconds, limits.max_milliseconds or float("inf"))
    if candidate.milliseconds > slowest:
        against.append("a run of it takes longer than allowed")
    largest = min(limits.max_growth * running.megabytes, limits.max_megabytes or float("inf"))
    if candidate.megabytes > largest:
        against.append(f"its model has {candidate.megabytes:.1f} MB (allowed: {largest:.1f})")
    return against


def _figures(one: SetEvidence) -> dict[str, Any]:
    return {
        "role": one.role,
        "candidate_ap50": round(one.candidate, _DIGITS),
        "running_ap50": round(one.running, _DIGITS),
        "difference": round(one.difference, _DIGITS),
        "low": round(one.low, _DIGITS) if one.low > float("-inf") else None,
        "unit": one.unit,
        "groups": one.groups,
        "classes": {name: round(difference, _DIGITS) for name, (difference, _) in one.classes.items()},
        "too_few": list(one.too_few),
        "operating": None if one.operating is None else _operating_figures(one.operating),
    }


def _operating_figures(found: Operating) -> dict[str, float | None]:
    return {
        "candidate_f1": round(found.candidate, _DIGITS),
        "running_f1": round(found.running, _DIGITS),
        "difference": round(found.difference, _DIGITS),
        "high": round(found.high, _DIGITS) if found.high < float("inf") else None,
    }
