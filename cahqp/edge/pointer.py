"""Pointer of a registry: the one file that names the running version."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cahqp.errors import RunError
from cahqp.files import write_json

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
    """

    generation: int
    version: str
    manifest: str
    before: tuple[str, ...]
    classes: tuple[str, ...]
    key: str | None


def read_pointer(path: Path) -> Pointer:
    """Read a pointer and check it against the hash it contains.

    Raises:
        RunError: The file is missing, damaged or not a pointer.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        digest = data.pop("sha256")
        pointer = Pointer(**{**data, "before": tuple(data["before"]), "classes": tuple(data["classes"])})
    except FileNotFoundError as error:
        raise RunError(_missing(path)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(_damaged(path, f"it cannot be read: {error}")) from error
    if digest != _digest(data) or Path(pointer.version).name != pointer.version:
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
