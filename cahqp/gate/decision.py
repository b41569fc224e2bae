"""Decision whether a candidate may replace the running package: a pure function of the measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Any, Literal

from scipy.stats import norm, t

from cahqp.errors import ConfigError
from cahqp.gate.options import GateLimits

Role = Literal["source", "replay", "canary"]
CONFIDENCE = 0.95
_DIGITS = 6


@dataclass(frozen=True)
class OperatingEvidence:
    """F1 of candidate and running package, each at its own thresholds.

    Attributes:
        candidate: Mean F1 of the candidate over classes in 0..1.
        running: Mean F1 of the running package over classes in 0..1.
        high: Upper 95 % bound of the difference, widened for few groups like `lower_bound`.
    """

    candidate: float
    running: float
    high: float

    @property
    def difference(self) -> float:
        """F1 of the candidate minus F1 of the running package."""
        return self.candidate - self.running


@dataclass(frozen=True)
class SetEvidence:
    """AP50 of candidate and running package on one labelled set.

    Attributes:
        name: Name of the set.
        role: Role of the set.
        candidate: AP50 of the candidate in 0..1.
        running: AP50 of the running package in 0..1.
        low: Lower 95 % bound of the difference, see `lower_bound`.
        unit: Resampling unit of the bootstrap: recordings, or blocks of frames.
        groups: Number of units.
        classes: Difference in AP50 and its upper 95 % bound by class name.
        too_few: Classes with too few objects in the set. They are excluded from all other values.
        operating: F1 at the packages' own thresholds. `None` if it was not measured.
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
    operating: OperatingEvidence | None = None

    @property
    def difference(self) -> float:
        """AP50 of the candidate minus AP50 of the running package."""
        return self.candidate - self.running


@dataclass(frozen=True)
class RuntimeCost:
    """Cost of a package on this machine.

    Attributes:
        milliseconds: Median time of one run.
        megabytes: Size of the model.
    """

    milliseconds: float
    megabytes: float


def lower_bound(difference: float, low: float, groups: int) -> float:
    """Return the one-sided lower 95 % bound of a difference, corrected for few groups.

    The 5 % quantile of a bootstrap over few groups is too close to the difference. Its spread lacks a factor
    sqrt(n / (n - 1)), and it uses the normal distribution instead of Student's t (Efron and Tibshirani, An
    Introduction to the Bootstrap, chapter 12). Both factors widen the bound, by 1.18 for ten groups and 1.04 for forty.

    Args:
        difference: Measured difference.
        low: 5 % quantile of the paired bootstrap.
        groups: Number of resampled recordings or blocks.
    """
    if groups < 2:
        return -inf
    factor = float(t.ppf(CONFIDENCE, groups - 1) / norm.ppf(CONFIDENCE)) * sqrt(groups / (groups - 1))
    return difference - (difference - low) * factor


def upper_bound(difference: float, high: float, groups: int) -> float:
    """Return the one-sided upper 95 % bound of a difference from the 95 % quantile; the mirror of `lower_bound`."""
    return -lower_bound(-difference, -high, groups)


def check_roles(roles: Sequence[str]) -> None:
    """Check that there is a set that may decide.

    Raises:
        ConfigError: There is neither a labelled source nor a canary set.
    """
    if "source" not in roles and "canary" not in roles:
        message = (
            "The gate needs --source or --canary. A canary is about 100 labelled target frames on which a candidate "
            "is measured before it runs."
        )
        raise ConfigError(message)


def decide(
    sets: Sequence[SetEvidence], limits: GateLimits, candidate: RuntimeCost, running: RuntimeCost
) -> dict[str, Any]:
    """Decide from the measurements.

    The candidate is published under four conditions. On every set the lower 95 % bound of its difference in AP50 lies
    above -`max_ap50_drop`. The mean difference is not negative, over the canary sets if there are any, else over all
    sets. Neither the AP50 of a class nor F1 at the packages' own thresholds drops significantly by more than
    `max_class_ap50_drop`. The candidate is neither too slow nor too large.

    Returns:
        `published`, `reason` in one sentence, `reasons` (all objections), and all measurements except times.

    Raises:
        ConfigError: There is neither a labelled source nor a canary set.
    """
    check_roles([one.role for one in sets])
    reasons = [reason for one in sets for reason in _set_objections(one, limits)]
    judges = [one for one in sets if one.role == "canary"] or list(sets)
    mean = sum(one.difference for one in judges) / len(judges)
    scope = "the canary" if judges[0].role == "canary" else f"{len(judges)} set{'s' * (len(judges) != 1)}"
    if mean < 0:
        reasons.append(f"its mean AP50 over {scope} is {-100 * mean:.1f} points below the running package's")
    reasons += _cost_objections(limits, candidate, running)
    published = f"Published: {100 * mean:+.1f} points of AP50 over {scope}."
    return {
        "published": not reasons,
        "reason": f"Kept the running version: {'; '.join(reasons)}." if reasons else published,
        "reasons": reasons,
        "mean_difference": round(mean, _DIGITS),
        "limits": limits.by_name(),
        "sets": {one.name: _set_values(one) for one in sets},
    }


def refuse(reason: str, limits: GateLimits) -> dict[str, Any]:
    """Return the decision about a candidate that could not be measured."""
    return {
        "published": False,
        "reason": f"Kept the running version: {reason}",
        "reasons": [reason],
        "mean_difference": None,
        "limits": limits.by_name(),
        "sets": {},
    }


def _set_objections(one: SetEvidence, limits: GateLimits) -> list[str]:
    reasons = []
    if not one.low > -limits.max_ap50_drop:
        reasons.append(
            f"on {one.name} it may be {-100 * one.low:.1f} points of AP50 below the running package (allowed: "
            f"{100 * limits.max_ap50_drop:g}; measured {100 * one.difference:+.1f} on {one.groups} {one.unit})"
        )
    for name, (difference, high) in one.classes.items():
        if difference < -limits.max_class_ap50_drop and high < 0:
            reasons.append(f"on {one.name} it loses {-100 * difference:.1f} points of AP50 of {name}")
    f1 = one.operating
    if f1 is not None and f1.difference < -limits.max_class_ap50_drop and f1.high < 0:
        reasons.append(
            f"on {one.name} its F1 at its own thresholds is {-100 * f1.difference:.1f} points below the running "
            f"package's (allowed: {100 * limits.max_class_ap50_drop:g})"
        )
    return reasons


def _cost_objections(limits: GateLimits, candidate: RuntimeCost, running: RuntimeCost) -> list[str]:
    reasons = []
    if candidate.milliseconds > min(limits.max_slowdown * running.milliseconds, limits.max_milliseconds or inf):
        reasons.append("one run takes longer than allowed")
    largest = min(limits.max_growth * running.megabytes, limits.max_megabytes or inf)
    if candidate.megabytes > largest:
        reasons.append(f"its model has {candidate.megabytes:.1f} MB (allowed: {largest:.1f})")
    return reasons


def _set_values(one: SetEvidence) -> dict[str, Any]:
    f1 = one.operating
    return {
        "role": one.role,
        "candidate_ap50": round(one.candidate, _DIGITS),
        "running_ap50": round(one.running, _DIGITS),
        "difference": round(one.difference, _DIGITS),
        "low": _finite(one.low),
        "unit": one.unit,
        "groups": one.groups,
        "classes": {name: round(difference, _DIGITS) for name, (difference, _) in one.classes.items()},
        "too_few": list(one.too_few),
        "operating": None if f1 is None else {
            "candidate_f1": round(f1.candidate, _DIGITS),
            "running_f1": round(f1.running, _DIGITS),
            "difference": round(f1.difference, _DIGITS),
            "high": _finite(f1.high),
        },
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return round(value, _DIGITS) if isfinite(value) else None
