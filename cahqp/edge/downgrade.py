"""Protection of a device against an older version of its registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from cahqp.edge.pointer import RUNNING, VERSIONS, Pointer, read_signed_pointer
from cahqp.errors import ConfigError, WeightsError
from cahqp.files import write_json
from cahqp.records import Record, Sha256, read_record

_REMEDY = "Copy the registry again. If it was rebuilt on purpose, remove {state}."


class _State(Record):
    """Newest pointer that a device has accepted."""

    key: Annotated[str, Field(pattern=r"\A[0-9a-f]{16}\z")]
    generation: Annotated[int, Field(ge=1, le=1 << 53)]
    pointer: Sha256


def running_no_older(registry: Path, trusted: Path, state: Path) -> Path:
    """Return the directory of the running version, and remember the pointer that names it.

    A pointer counts as older by its generation, which each promotion and each rollback raises. So a signed rollback is
    accepted, and a copy of an earlier pointer is refused, although its signature and that of its package are valid.

    Args:
        registry: Directory of the registry.
        trusted: Ed25519 public key (PEM) that must have signed the pointer.
        state: JSON file that remembers the newest pointer. The first call makes it. Those who can write the registry
            must not reach it.

    Raises:
        ConfigError: The key cannot be read, or `registry` is not a registry.
        RunError: The pointer or the state is damaged.
        WeightsError: The pointer is not signed, is signed with another key, or is older than the remembered one.
    """
    if not (registry / RUNNING).is_file():
        message = (
            f"--state compares pointers of a registry, and {registry} has no {RUNNING}. Give --weights a registry."
        )
        raise ConfigError(message)
    pointer = read_signed_pointer(registry, trusted)
    assert pointer.signature is not None
    found = _State(key=pointer.signature["key"], generation=pointer.generation, pointer=pointer.digest)
    if state.exists():
        _check(found, state, pointer, registry)
    write_json(state, found.model_dump())
    return registry / VERSIONS / pointer.version


def _check(found: _State, path: Path, pointer: Pointer, registry: Path) -> None:
    state = read_record(path, _State, _REMEDY.format(state=path))
    remedy = _REMEDY.format(state=path)
    if found.key != state.key:
        message = f"{registry} is signed with key {found.key}, but {path} belongs to key {state.key}. {remedy}"
        raise WeightsError(message)
    if found.generation < state.generation:
        message = (
            f"{registry} is older than before: generation {found.generation} runs {pointer.version}, and generation "
            f"{state.generation} ran here. {remedy}"
        )
        raise WeightsError(message)
    if found.generation == state.generation and found.pointer != state.pointer:
        message = f"{registry} has two signed pointers of generation {found.generation}. {remedy}"
        raise WeightsError(message)
