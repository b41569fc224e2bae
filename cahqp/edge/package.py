"""Edge packages: a directory with the model, the rules to feed and to read it, and a manifest that can be signed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahqp.edge.pointer import RUNNING, running_version
from cahqp.edge.signing import SIGNATURE, check_signature
from cahqp.errors import RunError, WeightsError
from cahqp.files import write_json

FORMAT = 1
MANIFEST = "package.json"
MODEL = "model.onnx"
_KEYS = ("format", "architecture", "classes", "input", "output", "thresholds", "precision", "weights", "files")


@dataclass(frozen=True)
class Package:
    """A package that was read and whose hashes agree.

    Attributes:
        path: Its directory.
        manifest: What `package.json` holds.
        digest: SHA-256 of `package.json`, which stands for the whole package.
        model: The bytes of the model, the very ones that were hashed.
        key: Fingerprint of the key it is signed with, `None` where it is not signed or nobody asked.
    """

    path: Path
    manifest: Mapping[str, Any]
    digest: str
    model: bytes
    key: str | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return tuple(self.manifest["classes"])

    @property
    def bytes(self) -> int:
        """Size of the model in bytes."""
        return len(self.model)


def find_package(path: Path) -> Path:
    """Return the directory of a package: the path itself, or the running version of the registry at that path.

    Raises:
        RunError: It is neither, or the registry was changed.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path
    if (path / RUNNING).is_file():
        return running_version(path)
    message = f"{path} is neither a package (with {MANIFEST}) nor a registry with a running version ({RUNNING})."
    raise RunError(message)


def read_package(path: Path, trusted: Path | None = None) -> Package:
    """Read a package or the running version of a registry, and check its hashes.

    Args:
        path: Directory of a package or of a registry.
        trusted: Ed25519 public key (PEM) that the package must be signed with; any package where `None`.

    Raises:
        RunError: There is no package, or its manifest cannot be read.
        WeightsError: A file is missing, changed or unknown, the manifest names one outside of the directory, or the
            signature is missing or another key's.
    """
    directory = find_package(path)
    data = _bytes(directory / MANIFEST)
    manifest = _parse(directory / MANIFEST, data)
    key = None if trusted is None else check_signature(directory, data, trusted)
    model = b""
    for name, expected in manifest["files"].items():
        found = _bytes(directory / name)
        if hashlib.sha256(found).hexdigest() != expected:
            message = f"{directory / name} does not match the hash in {MANIFEST}: it was changed. Restore a copy."
            raise WeightsError(message)
        model = found if name == MODEL else model
    return Package(directory, manifest, hashlib.sha256(data).hexdigest(), model, key)


def package_files(directory: Path) -> list[Path]:
    """Return the files that make up a package, its manifest last.

    Raises:
        RunError: There is no manifest.
        WeightsError: It was changed: it names a file outside of the directory.
    """
    manifest = _parse(directory / MANIFEST, _bytes(directory / MANIFEST))
    signature = [directory / SIGNATURE] if (directory / SIGNATURE).is_file() else []
    return [*(directory / name for name in sorted(manifest["files"])), *signature, directory / MANIFEST]


def write_manifest(directory: Path, described: Mapping[str, Any]) -> bytes:
    """Write `package.json` with the hash of the model beside it and return its bytes.

    Args:
        directory: Holds the model.
        described: All other keys of the manifest.
    """
    files = {MODEL: hashlib.sha256(_bytes(directory / MODEL)).hexdigest()}
    write_json(directory / MANIFEST, {"format": FORMAT, **described, "files": files})
    return _bytes(directory / MANIFEST)


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
    except ValueError as error:
        message = f"{path} is not readable JSON ({error}): it was changed. Restore a copy."
        raise WeightsError(message) from error
    missing = [key for key in _KEYS if key not in manifest] if isinstance(manifest, dict) else list(_KEYS)
    if missing:
        message = f"{path} has no {', '.join(missing)}: it is no package, or it was changed. Export it again."
        raise WeightsError(message)
    if manifest["format"] != FORMAT:
        message = f"{path} has format {manifest['format']}; this version reads {FORMAT}. Use the cahqp that wrote it."
        raise WeightsError(message)
    if not isinstance(manifest["files"], dict) or MODEL not in manifest["files"]:
        message = f"{path} names no {MODEL}: it was changed. Restore a copy."
        raise WeightsError(message)
    outside = [name for name in manifest["files"] if name in ("", ".", "..") or set(name) & set("/\\\0")]
    if outside:
        message = f"{path} names {outside[0]!r}, which is no plain file name: it was changed. Restore a copy."
        raise WeightsError(message)
    return dict(manifest)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}). Restore a copy of the package, or export it again."
        raise (RunError if path.name == MANIFEST else WeightsError)(message) from error
