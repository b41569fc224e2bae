"""`cahqp registry`: list, show, promote, roll back, verify, collect and push versions."""

from __future__ import annotations

import json
from pathlib import Path

from cahqp.edge.pointer import VERSIONS
from cahqp.errors import ConfigError, RunError
from cahqp.files import redact_url
from cahqp.registry.options import (
    CollectOptions,
    PromoteOptions,
    PushOptions,
    RegistryOptions,
    RollbackOptions,
    ShowOptions,
    VerifyOptions,
)
from cahqp.registry.registry import PromotionRequest, Registry
from cahqp.runs.directory import content_hash
from cahqp.runs.evidence import read_decision


def list_versions(options: RegistryOptions) -> None:
    """Print all versions, oldest first, with a mark at the running version."""
    registry = Registry(options.registry)
    pointer = registry.pointer
    for name in registry.versions.names():
        mark = "*" if pointer is not None and name == pointer.version else " "
        print(f"{mark} {name}  {registry.versions.read(name).get('reason') or ''}".rstrip())
    if pointer is None:
        print(f"{options.registry} has no running version.")


def show(options: ShowOptions) -> None:
    """Print the manifest and the path of a version."""
    registry = Registry(options.registry)
    name = options.version or _running(registry)
    manifest = {"path": str(options.registry / VERSIONS / name), **registry.versions.read(name)}
    print(json.dumps(manifest, indent=2, sort_keys=True))


def promote(options: PromoteOptions) -> None:
    """Make a package the running version, atomically. Nothing happens if the gate's decision keeps the running one."""
    decision = None if options.decision is None else read_decision(options.decision)
    if decision is not None and not decision.published:
        print(f"Nothing promoted. {decision.reason}")
        return
    request = PromotionRequest(decision, options.reason, options.expect, options.parents, _hashes(options.data))
    name = Registry(options.registry).promote(options.package, request, options.trusted, options.key)
    print(f"{options.registry} runs {name}.")


def rollback(options: RollbackOptions) -> None:
    """Make an earlier version run again; this also repairs a damaged pointer."""
    name = Registry(options.registry).rollback(options.to, options.trusted, options.key)
    print(f"{options.registry} runs {name}.")


def verify(options: VerifyOptions) -> None:
    """Check every byte of the registry.

    Raises:
        RunError: A version or the pointer is damaged; the command then ends with 1.
    """
    registry = Registry(options.registry)
    problems = registry.verify(options.trusted)
    if problems:
        raise RunError("\n".join(problems))
    print(f"{options.registry}: {len(registry.versions.names())} versions verify; {_running(registry)} runs.")


def gc(options: CollectOptions) -> None:
    """Remove old versions and leftovers of interrupted commands. The running version and `keep` earlier ones stay."""
    removed = Registry(options.registry).collect(options.keep)
    print("\n".join(f"removed {name}" for name in removed) or "There is nothing to remove.")


def push(options: PushOptions) -> None:
    """Copy a version to an fsspec URL, to W&B, or to both.

    Raises:
        RunError: The version does not verify; nothing is sent.
    """
    from cahqp.registry.push import push_artifact, push_files

    registry = Registry(options.registry)
    name = options.version or _running(registry)
    problems = registry.problems(name, options.trusted, registry.pointer)
    if problems:
        raise RunError("\n".join([*problems, "Nothing was sent."]))
    if options.to is not None:
        push_files(registry, name, options.to)
        print(f"{redact_url(options.to)} has {name}.")
    if options.wandb is not None:
        push_artifact(registry, name, options.wandb)
        print(f"W&B project {options.wandb} has {name}.")


def _running(registry: Registry) -> str:
    pointer = registry.pointer
    if pointer is None:
        message = f"{registry.root} has no running version. Promote a package first."
        raise RunError(message)
    return pointer.version


def _hashes(entries: list[str]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in entries]
    wrong = [entry for entry, pair in zip(entries, pairs, strict=True) if not all(pair)]
    if wrong:
        message = f"--data {wrong[0]!r} must be NAME=PATH, such as labels=runs/relabel/labels.json."
        raise ConfigError(message)
    return {name: content_hash(Path(path), f"--data {name}") for name, _, path in pairs}
