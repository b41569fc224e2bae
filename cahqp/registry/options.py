"""Options of `cahqp registry list|show|promote|rollback|verify|gc|push`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cahqp.errors import ConfigError, check_numbers


@dataclass(frozen=True, kw_only=True)
class RegistryOptions:
    """Options of `cahqp registry list`.

    Attributes:
        registry: Directory of the registry.
    """

    registry: Path


@dataclass(frozen=True, kw_only=True)
class ShowOptions(RegistryOptions):
    """Options of `cahqp registry show`.

    Attributes:
        version: Name of the version. Default: the running version.
    """

    version: str | None = None


@dataclass(frozen=True, kw_only=True)
class PromoteOptions(RegistryOptions):
    """Options of `cahqp registry promote`.

    Attributes:
        package: Package that `cahqp export` wrote.
        decision: `decision.json` of `cahqp gate` about this package and the running version.
        reason: Why the package is promoted without a gate. The first version needs neither.
        expect: Name of the version that must be running now, or `none`.
        parents: Models that the package was made from. Default: the running version.
        data: NAME=PATH of data that the package was made from; the registry keeps their SHA-256.
        trusted: Ed25519 public key (PEM) that must have signed the package.
        key: Its private key (PEM), which signs the pointer to the running version, so that `cahqp detect --state` can
            refuse an older one. Required once the pointer is signed.
    """

    package: Path
    decision: Path | None = None
    reason: str | None = None
    expect: str | None = None
    parents: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    trusted: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, kw_only=True)
class RollbackOptions(RegistryOptions):
    """Options of `cahqp registry rollback`.

    Attributes:
        to: Name of the version to run again. Default: the version that ran before the current one.
        trusted: Ed25519 public key (PEM) that must have signed it.
        key: Its private key (PEM), which signs the pointer to the running version. Required once the pointer is signed.
    """

    to: str | None = None
    trusted: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(RegistryOptions):
    """Options of `cahqp registry verify`.

    Attributes:
        trusted: Ed25519 public key (PEM) that must have signed all versions.
    """

    trusted: Path | None = None


@dataclass(frozen=True, kw_only=True)
class CollectOptions(RegistryOptions):
    """Options of `cahqp registry gc`.

    Attributes:
        keep: Number of versions to keep from before the running version, at least 1.
    """

    keep: int = 3

    def __post_init__(self) -> None:
        """Check the range of `keep`.

        Raises:
            ConfigError: It is below 1.
        """
        check_numbers({}, {"--keep": self.keep})


@dataclass(frozen=True, kw_only=True)
class PushOptions(ShowOptions):
    """Options of `cahqp registry push`.

    Attributes:
        to: fsspec URL such as s3://bucket/fleet. The version goes to `versions/NAME/`. If it is the running version,
            `running.json` goes beside it.
        wandb: W&B project that gets the version as an artifact.
        trusted: Ed25519 public key (PEM) that must have signed the version.
    """

    to: str | None = None
    wandb: str | None = None
    trusted: Path | None = None

    def __post_init__(self) -> None:
        """Check that there is a destination.

        Raises:
            ConfigError: Both destinations are missing.
        """
        if self.to is None and self.wandb is None:
            message = "Give a destination: --to URL, --wandb PROJECT, or both."
            raise ConfigError(message)
