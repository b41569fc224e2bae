"""Pointer of a registry: the one file that names the running version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cahqp.edge.signing import make_signature, verify_signature
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
        signature: `key` and `signature` over everything else; see `sign_pointer`. `None` if it is not signed.
    """

    generation: int
    version: str
    manifest: str
    before: tuple[str, ...]
    classes: tuple[str, ...]
    key: str | None
    manifests: Mapping[str, str] = field(default_factory=dict)
    signature: Mapping[str, str] | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of everything but the signature."""
        return _digest(_content(self))


_Version = Annotated[str, Field(pattern=r"\A[0-9]{1,9}-[0-9a-f]{8}\z")]


class _VersionPackage(Record):
    """The part of `version.json` that names the package."""

    package: Sha256


class _SignatureRecord(Record):
    """Signature of a pointer."""

    key: Annotated[str, Field(pattern=r"\A[0-9a-f]{16}\z")]
    signature: Annotated[str, Field(max_length=200)]


class _PointerRecord(Record):
    """Content of the file of a pointer."""

    generation: Annotated[int, Field(ge=1, le=1 << 53)]
    version: _Version
    manifest: Sha256
    before: list[_Version]
    classes: list[Name]
    key: Annotated[str, Field(pattern=r"\A[0-9a-f]{16}\z")] | None
    manifests: dict[_Version, Sha256] = Field(default_factory=dict)
    signature: _SignatureRecord | None = None
    sha256: Sha256


def read_pointer(path: Path) -> Pointer:
    """Read a pointer and check it against the hash it contains.

    Raises:
        RunError: The file is missing, damaged or not a pointer.
    """
    try:
        data = read_record(path, _PointerRecord, "").model_dump(exclude_unset=True)
        digest, signature = data.pop("sha256"), data.pop("signature", None)
        pointer = Pointer(**{**data, "before": tuple(data["before"]), "classes": tuple(data["classes"])})
    except (RunError, TypeError) as error:  # a TypeError by a key of a later format
        if not path.exists():
            raise RunError(_missing(path)) from error
        raise RunError(_damaged(path, f"it cannot be read: {error}")) from error
    if digest != _digest(data):
        raise RunError(_damaged(path, "it does not match its own hash"))
    return replace(pointer, signature=signature)


def write_pointer(path: Path, pointer: Pointer) -> None:
    """Write a pointer atomically.

    Raises:
        RunError: The disk is full, or the directory cannot be written.
    """
    signature = {} if pointer.signature is None else {"signature": dict(pointer.signature)}
    write_json(path, {**_content(pointer), **signature, "sha256": pointer.digest})


def sign_pointer(pointer: Pointer, key: Path) -> Pointer:
    """Return a pointer with a signature, by which devices recognise an older one.

    Raises:
        ConfigError: The Ed25519 private key (PEM) cannot be read.
    """
    return replace(pointer, signature=make_signature(_signed_bytes(pointer), key))


def read_signed_pointer(registry: Path, trusted: Path) -> Pointer:
    """Read the pointer of a registry and check its signature.

    Args:
        registry: Directory of the registry.
        trusted: Ed25519 public key (PEM).

    Raises:
        RunError: The pointer is missing or damaged.
        WeightsError: It is not signed, or signed with another key.
    """
    path = registry / RUNNING
    pointer = read_pointer(path)
    if pointer.signature is None:
        message = (
            f"{path} is not signed. Sign it with `cahqp registry promote --key` or `cahqp registry rollback --key`."
        )
        raise WeightsError(message)
    verify_signature(pointer.signature, _signed_bytes(pointer), trusted, path)
    return pointer


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


def check_package(directory: Path, digest: str) -> None:
    """Check that the manifest of a version names the package in its directory.

    Raises:
        RunError: It names another package, or cannot be read.
    """
    path = directory / VERSION
    if read_record(path, _VersionPackage, "It was changed: restore a copy.").package != digest:
        message = f"{path} names another package than the one beside it: it was exchanged. Restore a copy."
        raise RunError(message)


def _content(pointer: Pointer) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(asdict(pointer)))
    del data["signature"]
    return data


def _signed_bytes(pointer: Pointer) -> bytes:
    """Return the bytes to sign; no manifest of a package begins like this."""
    return f"cahqp registry {pointer.digest}".encode()


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
