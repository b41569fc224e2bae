"""`cahqp registry`: what has run, what runs, and how to go on or back."""

from __future__ import annotations

import json
from pathlib import Path

from cahqp.edge.pointer import VERSIONS
from cahqp.errors import ConfigError, RunError, check_numbers
from cahqp.files import read_json, redact_url
from cahqp.registry.registry import PromotionRequest, Registry
from cahqp.runs.directory import content_hash


def list_versions(registry: Path) -> None:
    """List all versions, oldest first; the running one is marked.

    Args:
        registry: Directory of the registry.
    """
    found = Registry(registry)
    now = found.pointer
    for name in found.versions.names():
        mark = "*" if now is not None and name == now.version else " "
        print(f"{mark} {name}  {found.versions.read(name).get('reason') or ''}".rstrip())
    if now is None:
        print(f"{registry} has no running version.")


def show(registry: Path, version: str | None = None) -> None:
    """Print a version's manifest and where its package is.

    Args:
        registry: Directory of the registry.
        version: Its name; the running one where not given.
    """
    found = Registry(registry)
    name = version or _running(found)
    print(json.dumps({"path": str(registry / VERSIONS / name), **found.versions.read(name)}, indent=2, sort_keys=True))


def promote(
    registry: Path,
    package: Path,
    decision: Path | None = None,
    reason: str | None = None,
    expect: str | None = None,
    parents: list[str] | None = None,
    data: list[str] | None = None,
    trusted: Path | None = None,
) -> None:
    """Make a package the running version, in one step that is done or not done.

    Where the gate decided to keep the running version, nothing is done.

    Args:
        registry: Directory of the registry; made where it does not exist.
        package: What `cahqp export` wrote.
        decision: The `decision.json` that `cahqp gate` wrote of this package and the running one.
        reason: Why a person promotes it without a gate; the first version needs neither.
        expect: Name of the version that must be running now, or `none`.
        parents: What the package was made from; the running version where not given.
        data: NAME=PATH of data that it was made from; their SHA-256 are kept.
        trusted: Ed25519 public key (PEM) that it must be signed with.
    """
    decided = None if decision is None else read_json(decision)
    if isinstance(decided, dict) and decided.get("published") is False:
        print(f"Nothing promoted. {decided.get('reason')}")
        return
    claim = PromotionRequest(decided, reason, expect, parents or (), _hashes(data or []))
    name = Registry(registry).promote(package, claim, trusted)
    print(f"{registry} runs {name}.")


def rollback(registry: Path, to: str | None = None, trusted: Path | None = None) -> None:
    """Let an earlier version run again; also mends a damaged pointer.

    Args:
        registry: Directory of the registry.
        to: Name of the version; the one that ran before where not given.
        trusted: Ed25519 public key (PEM) that it must be signed with.
    """
    print(f"{registry} runs {Registry(registry).rollback(to, trusted)}.")


def verify(registry: Path, trusted: Path | None = None) -> None:
    """Check every byte of the registry; ends with 1 where something is wrong.

    Args:
        registry: Directory of the registry.
        trusted: Ed25519 public key (PEM) that all versions must be signed with.
    """
    found = Registry(registry)
    problems = found.verify(trusted)
    if problems:
        raise RunError("\n".join(problems))
    print(f"{registry}: {len(found.versions.names())} versions verify; {_running(found)} runs.")


def gc(registry: Path, keep: int = 3) -> None:
    """Remove old versions and what killed commands left. The running one and those to go back to stay.

    Args:
        registry: Directory of the registry.
        keep: How many of the versions before the running one stay.
    """
    check_numbers({}, {"keep": keep})
    removed = Registry(registry).collect(keep)
    print("\n".join(f"removed {name}" for name in removed) or "There is nothing to remove.")


def push(
    registry: Path, to: str | None = None, version: str | None = None, wandb: str | None = None,
    trusted: Path | None = None,
) -> None:  # fmt: skip
    """Send a version out: to any fsspec URL (s3://bucket/fleet), to W&B, or to both.

    Args:
        registry: Directory of the registry.
        to: URL to write to; `versions/NAME/` and, of the running version, `running.json` below it.
        version: Its name; the running one where not given.
        wandb: Project that the version becomes an artifact of.
        trusted: Ed25519 public key (PEM) that it must be signed with.
    """
    from cahqp.registry.push import push_artifact, push_files

    if to is None and wandb is None:
        message = "Say where to: --to URL, or --wandb PROJECT."
        raise ConfigError(message)
    found = Registry(registry)
    name = version or _running(found)
    problems = found.versions.problems(name, trusted)
    if problems:
        raise RunError("\n".join([*problems, "Nothing was sent."]))
    if to is not None:
        push_files(found, name, to)
        print(f"{redact_url(to)} has {name}.")
    if wandb is not None:
        push_artifact(found, name, wandb)
        print(f"W&B project {wandb} has {name}.")


def _running(found: Registry) -> str:
    now = found.pointer
    if now is None:
        message = f"{found.root} has no running version. Promote a package first."
        raise RunError(message)
    return now.version


def _hashes(given: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    wrong = [text for text, pair in zip(given, pairs, strict=True) if not all(pair)]
    if wrong:
        message = f"--data {wrong[0]!r} must be NAME=PATH, such as labels=runs/relabel/labels.json."
        raise ConfigError(message)
    return {name: content_hash(Path(path), f"--data {name}") for name, _, path in pairs}
