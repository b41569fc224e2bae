"""Options of `cahqp gate`, whose limits a plan's `gate:` section shares."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import inf
from pathlib import Path

from cahqp.errors import MAX_RESAMPLES, ConfigError, check_numbers, option

_LONGEST = 10_000  # minutes: a week


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """Limits that a candidate package must keep.

    Attributes:
        max_ap50_drop: Largest drop of AP50 in 0..1 that the lower 95 % bound of the difference may reach on any set.
        max_class_ap50_drop: Largest drop of the AP50 of one class in 0..1, and of F1 at the thresholds of the packages.
            A larger drop counts if it is significant.
        max_slowdown: Largest time of one run, as a multiple of the running package's time.
        max_milliseconds: Longest time of one run in milliseconds on this machine. Default none: no absolute limit.
        max_growth: Largest size of the model, as a multiple of the running package's size.
        max_megabytes: Largest size of the model in megabytes. Default none: no absolute limit.
    """

    max_ap50_drop: float = 0.01
    max_class_ap50_drop: float = 0.05
    max_slowdown: float = 1.5
    max_milliseconds: float | None = None
    max_growth: float = 1.5
    max_megabytes: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: A limit is out of range. The message lists all of them.
        """
        shares = ("max_ap50_drop", "max_class_ap50_drop")
        factors = ("max_slowdown", "max_milliseconds", "max_growth", "max_megabytes")
        values = vars(self)
        problems = [f"{option(n)} must lie in 0..1, got {values[n]}." for n in shares if not 0 <= values[n] <= 1]
        problems += [
            f"{option(name)} must be a number above 0, got {values[name]}."
            for name in factors
            if values[name] is not None and not 0 < values[name] < inf
        ]
        if problems:
            raise ConfigError("\n".join(problems))

    def by_name(self) -> dict[str, float | None]:
        """Return the limits, without the fields of subclasses."""
        return {limit.name: getattr(self, limit.name) for limit in fields(GateLimits)}


@dataclass(frozen=True, kw_only=True)
class GateOptions(GateLimits):
    """Decide whether a candidate package may replace the running package, and write the reasons to `decision.json`.

    The candidate is published if, on every set, the lower 95 % bound of its difference in AP50 stays above
    -`max_ap50_drop`, and the mean difference is not negative. The mean is taken over the canary sets if there are any,
    else over all sets. The command exits with 0 in both cases.

    Attributes:
        candidate: Package directory that `cahqp export` wrote.
        running: Running package, or a registry with a running version.
        output: New directory for the decision. It is never overwritten.
        source: COCO files with source validation labels; each may be NAME=FILE.
        replay: COCO files of past domains; each may be NAME=FILE. Files with one NAME form one set.
        canary: Small COCO files with target labels; each may be NAME=FILE. Required without `source`.
        labels: COCO file with the adapted teacher's labels on held-out target frames. They give advice only.
        trusted: Ed25519 public key (PEM) that must have signed the candidate.
        min_objects: Smallest number of objects a class needs in a set to be measured there.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.
        max_minutes: Time in minutes after which the command ends without a decision.
    """

    candidate: Path
    running: Path
    output: Path
    source: list[str] = field(default_factory=list)
    replay: list[str] = field(default_factory=list)
    canary: list[str] = field(default_factory=list)
    labels: Path | None = None
    trusted: Path | None = None
    min_objects: int = 20
    resamples: int = 1000
    seed: int = 0
    max_minutes: float = 240.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: An option is out of range. The message lists all of them.
        """
        if not 0 < self.max_minutes <= _LONGEST:
            message = f"--max-minutes must lie above 0 and at most {_LONGEST:,}, got {self.max_minutes}."
            raise ConfigError(message)
        super().__post_init__()
        check_numbers({}, {"--resamples": self.resamples, "--min-objects": self.min_objects}, MAX_RESAMPLES)
