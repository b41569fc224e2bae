"""Edge package: a directory with a model, its preprocessing and decoding rules, and a manifest that can be signed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahqp.edge.manifest import PackageManifest
from cahqp.edge.onnx_scan import find_forbidden
from cahqp.edge.pointer import RUNNING, check_key, check_package, running_version
from cahqp.edge.signing import SIGNATURE, check_signature
from cahqp.errors import RunError, WeightsError
from cahqp.files import MAX_BYTES, read_limited, write_json
from cahqp.records import parse_json, parse_record

FORMAT = 1
MANIFEST = "package.json"
MODEL = "model.onnx"
_MAX_MODEL_BYTES = 2 << 30  # protobuf's limit
_KEYS = ("format", "architecture", "classes", "input", "output", "thresholds", "precision", "weights", "files")


@dataclass(frozen=True)
class Package:
    """A package whose hashes were checked.

    Attributes:
        path: Directory of the package.
        manifest: Content of `package.json`.
        digest: SHA-256 of `package.json`, which identifies the whole package.
        model: Bytes of the model, exactly those that were hashed.
        key: Fingerprint of the signing key. `None` if the signature was not checked.
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
    """Return a package directory: the path itself, or the running version of the registry at that path.

    Raises:
        RunError: The path is neither, or the registry was changed.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path
    if (path / RUNNING).is_file():
        return running_version(path)
    message = f"{path} is neither a package (with {MANIFEST}) nor a registry with a running version ({RUNNING})."
    raise RunError(message)


def read_package(path: Path, trusted: Path | None = None) -> Package:
    """Read a package, or the running version of a registry, and check its hashes.

    Args:
        path: Directory of a package or a registry.
        trusted: Ed25519 public key (PEM) that must have signed the package. `None` skips the check.

    Raises:
        RunError: There is no package, or its manifest cannot be read.
        WeightsError: A file is missing or changed, the manifest names a file outside the directory, the model refers to
            another file or may run for ever, the signature is missing or belongs to another key, or the registry
            requires a key.
    """
    directory = find_package(path)
    data = _read(directory / MANIFEST)
    digest = hashlib.sha256(data).hexdigest()
    if directory != Path(path):
        check_package(directory, digest)
    manifest = _parse(directory / MANIFEST, data)
    key = None if trusted is None else check_signature(directory, data, trusted)
    if directory != Path(path):
        check_key(Path(path), key)
    model = b""
    for name, expected in manifest["files"].items():
        content = _read(directory / name)
        if hashlib.sha256(content).hexdigest() != expected:
            message = f"{directory / name} does not match its hash in {MANIFEST}: it was changed. Restore a copy."
            raise WeightsError(message)
        model = content if name == MODEL else model
    if (problem := find_forbidden(model)) is not None:
        message = f"{directory / MODEL} {problem}. Packages must not contain it. Export the package again."
        raise WeightsError(message)
    return Package(directory, manifest, digest, model, key)


def package_files(directory: Path) -> list[Path]:
    """Return the files of a package, its manifest last.

    Raises:
        RunError: There is no manifest.
        WeightsError: The manifest is damaged or names a file outside the directory.
    """
    manifest = _parse(directory / MANIFEST, _read(directory / MANIFEST))
    signature = [directory / SIGNATURE] if (directory / SIGNATURE).is_file() else []
    return [*(directory / name for name in sorted(manifest["files"])), *signature, directory / MANIFEST]


def write_manifest(directory: Path, content: Mapping[str, Any]) -> bytes:
    """Write `package.json` with the hash of the model in the same directory, and return its bytes.

    Args:
        directory: Directory with the model.
        content: All keys of the manifest except `format` and `files`.
    """
    files = {MODEL: hashlib.sha256(_read(directory / MODEL)).hexdigest()}
    write_json(directory / MANIFEST, {"format": FORMAT, **content, "files": files})
    return _read(directory / MANIFEST)


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        manifest = parse_json(data)
    except ValueError as error:
        message = f"{path} is not readable JSON ({error}): it was changed. Restore a copy."
        raise WeightsError(message) from error
    problem = _manifest_problem(manifest)
    if problem is not None:
        message = f"{path} {problem}"
        raise WeightsError(message)
    parse_record(data, path, PackageManifest, "Export the package again.", WeightsError)
    return dict(manifest)


def _manifest_problem(manifest: Any) -> str | None:
    missing = [key for key in _KEYS if key not in manifest] if isinstance(manifest, dict) else list(_KEYS)
    if missing:
        return f"lacks {', '.join(missing)}: it is not a package manifest, or it was changed. Export the package again."
    if manifest["format"] != FORMAT:
        return f"has format {manifest['format']}; this version reads {FORMAT}. Use the cahqp version that wrote it."
    if not isinstance(manifest["files"], dict) or MODEL not in manifest["files"]:
        return f"does not list {MODEL}: it was changed. Restore a copy."
    outside = [name for name in manifest["files"] if name in ("", ".", "..") or set(name) & set("/\\\0")]
    return f"lists {outside[0]!r}, which is not a plain file name: it was changed. Restore a copy." if outside else None


def _read(path: Path) -> bytes:
    try:
        return read_limited(path, MAX_BYTES if path.name == MANIFEST else _MAX_MODEL_BYTES)
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}). Restore a copy of the package, or export it again."
        raise (RunError if path.name == MANIFEST else WeightsError)(message) from error
