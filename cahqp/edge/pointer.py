"""The one file of a registry that says which version runs."""

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
    """Which version runs, and what a registry takes.

    Attributes:
        generation: Counts every change of the pointer.
        version: Name of the running version.
        manifest: SHA-256 of its `version.json`.
        before: The versions that a rollback goes back through, the last one first to be taken.
        classes: Class names that every package here has.
        key: Fingerprint of the key that every package here is signed with, `None` where none has to be.
    """

    generation: int
    version: str
    manifest: str
    before: tuple[str, ...]
    classes: tuple[str, ...]
    key: str | None


def read_pointer(path: Path) -> Pointer:
    """Read a pointer and check it against the hash that it carries.

    Raises:
        RunError: It is missing, damaged or not a pointer.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        claimed = data.pop("sha256")
        pointer = Pointer(**{**data, "before": tuple(data["before"]), "classes": tuple(data["classes"])})
    except FileNotFoundError as error:
        raise RunError(_missing(path)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(_damaged(path, f"it cannot be read: {error}")) from error
    if claimed != _digest(data) or Path(pointer.version).name != pointer.version:
        raise RunError(_damaged(path, "it does not match its own hash"))
    return pointer


def write_pointer(path: Path, pointer: Pointer) -> None:
    """Write a pointer, whole or not at all: a rename switches it.

    Raises:
        RunError: The disk is full, or the directory cannot be written.
    """
    data = json.loads(json.dumps(asdict(pointer)))
    write_json(path, {**data, "sha256": _digest(data)})


def running_version(registry: Path) -> Path:
    """Return the directory of the running version, its manifest checked against the pointer.

    Raises:
        RunError: The pointer or the manifest is missing or was changed.
    """
    pointer = read_pointer(registry / RUNNING)
    directory = registry / VERSIONS / pointer.version
    check_version(directory, pointer.manifest)
    return directory


def check_version(directory: Path, expected: str) -> None:
    """Check the bytes of a version's manifest.

    Raises:
        RunError: They are not those of the hash.
    """
    try:
        found = hashlib.sha256((directory / VERSION).read_bytes()).hexdigest()
    except OSError as error:
        message = f"{directory / VERSION} cannot be read ({error.strerror}). `cahqp registry rollback` goes back."
        raise RunError(message) from error
    if found != expected:
        message = f"{directory / VERSION} was changed since it was promoted. `cahqp registry rollback` goes back."
        raise RunError(message)


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _missing(path: Path) -> str:
    if path.with_name(PREVIOUS).exists():
        return f"{path} is gone, {PREVIOUS} is there. `cahqp registry rollback` mends it: what ran before runs again."
    return f"{path.parent} is no registry with a running version: it has no {path.name}. Promote a package."


def _damaged(path: Path, how: str) -> str:
    if path.name == PREVIOUS:
        remedy = f"It is needed only when {RUNNING} is damaged; `cahqp registry gc` or the next promote writes it anew."
    else:
        remedy = "`cahqp registry rollback` restores what ran before."
    return f"{path} was changed or damaged ({how}). {remedy}"
