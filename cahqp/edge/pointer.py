"""Pointer of a registry: the one file that names the running version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cahqp.errors import RunError, WeightsError
from cahqp.files import write_json
from cahqp.records import Name, Record, Sha256, read_record

RUNNING = "running.json"
PREVIOUS = "running.previous.json"
VERSIONS = "versions"
VERSION = "version.json"


@dataclass(frozen=True)
class Pointer:
    """Running version of a registry, and the requirements for new versions.

    Attributes:
        generation: Number of changes of the pointer.
        version: Name of the running version.
        manifest: SHA-256 of its `version.json`.
        before: Earlier versions in the order in which they ran. A rollback takes the last one first.
        classes: Class names that every package must have.
        key: Fingerprint of the key that must have signed every package. `None` allows unsigned packages.
        manifests: SHA-256 of the `version.json` of each version that ever ran here, by name.
    """

    generation: int
    version: str
    manifest: str
    before: tuple[str, ...]
    classes: tuple[str, ...]
    key: str | None
    manifests: Mapping[str, str] = field(default_factory=dict)


_Version = Annotated[str, Field(pattern=r"\A[0-9]{1,9}-[0-9a-f]{8}\z")]


class _PointerRecord(Record):
    """Content of the file of a pointer."""

    generation: Annotated[int, Field(ge=1, le=1 << 53)]
    version: _Version
    manifest: Sha256
    before: list[_Version]
    classes: list[Name]
    key: Annotated[str, Field(pattern=r"\A[0-9a-f]{16}\z")] | None
    manifests: dict[_Version, Sha256] = Field(default_factory=dict)
    sha256: Sha256


def read_pointer(path: Path) -> Pointer:
    """Read a pointer and check it against the hash it contains.

    Raises:
        RunError: The file is missing, damaged or not a pointer.
    """
    try:
        data = read_record(path, _PointerRecord, "").model_dump(exclude_unset=True)
        digest = data.pop("sha256")
        pointer = Pointer(**{**data, "before": tuple(data["before"]), "classes": tuple(data["classes"])})
    except (RunError, TypeError) as error:  # a TypeError by a key of a later format
        if not path.exists():
            raise RunError(_missing(path)) from error
        raise RunError(_damaged(path, f"it cannot be read: {error}")) from error
    if digest != _digest(data):
        raise RunError(_damaged(path, "it does not match its own hash"))
    return pointer


def write_pointer(path: Path, pointer: Pointer) -> None:
    """Write a pointer atomically.

    Raises:
        RunError: The disk is full, or the directory cannot be written.
    """
    data = json.loads(json.dumps(asdict(pointer)))
    write_json(path, {**data, "sha256": _digest(data)})


def running_version(registry: Path) -> Path:
    """Return the directory of the running version after checking its manifest against the pointer.

    Raises:
        RunError: The pointer or the manifest is missing or was changed.
    """
    pointer = read_pointer(registry / RUNNING)
    directory = registry / VERSIONS / pointer.version
    check_version(directory, pointer.manifest)
    return directory


def check_key(registry: Path, key: str | None) -> None:
    """Check the key of a package against the key of its registry.

    Args:
        registry: Directory of the registry.
        key: Fingerprint of the key whose signature was checked. `None` if none was.

    Raises:
        WeightsError: The registry has a key, and the package was not checked against it.
    """
    required = read_pointer(registry / RUNNING).key
    if required is not None and key != required:
        message = f"{registry} runs only versions signed with key {required}. Give that public key with --trusted."
        raise WeightsError(message)


def check_version(directory: Path, expected: str) -> None:
    """Check the SHA-256 of a version's manifest.

    Raises:
        RunError: The manifest cannot be read or was changed.
    """
    path = directory / VERSION
    remedy = "Run `cahqp registry rollback` to return to an earlier version."
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}). {remedy}"
        raise RunError(message) from error
    if digest != expected:
        message = f"{path} was changed since its promotion. {remedy}"
        raise RunError(message)


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _missing(path: Path) -> str:
    if path.with_name(PREVIOUS).exists():
        return f"{path} is missing, but {PREVIOUS} exists. Run `cahqp registry rollback` to restore what ran before."
    return f"{path.parent} is not a registry with a running version: {path.name} is missing. Promote a package."


def _damaged(path: Path, problem: str) -> str:
    remedy = "Run `cahqp registry rollback` to restore what ran before."
    if path.name == PREVIOUS:
        remedy = f"It is needed only if {RUNNING} is damaged. `cahqp registry gc` or the next promotion rewrites it."
    return f"{path} was changed or damaged ({problem}). {remedy}"
