"""Manifest of a finished run, and identity of an unfinished one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cahqp.errors import RunError
from cahqp.records import FileName, Name, Record, Sha256, Text, read_record

MANIFEST = "manifest.json"
IDENTITY = "identity.json"

_MAX_BYTES = 1 << 30  # of a manifest: about eight million outputs


class _RunRecord(Record):
    """Command, version, seed and settings of a run."""

    command: Name
    version: Name
    seed: int
    settings: dict[str, Any]


class _IdentityRecord(_RunRecord):
    """Content of `identity.json`."""

    inputs: dict[str, Sha256]


class _InputRecord(Record):
    name: Text
    sha256: Sha256


class _ManifestRecord(_RunRecord):
    """Content of `manifest.json`."""

    inputs: dict[str, _InputRecord]
    metrics: dict[str, Any]
    outputs: dict[FileName, Sha256]


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read a finished run's manifest.

    Raises:
        RunError: The manifest is missing or damaged.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        message = (
            f"{directory} is not a finished run: {MANIFEST} is missing. Choose another directory, or remove this one."
        )
        raise RunError(message)
    remedy = f"It is damaged: remove {directory} and rerun its command."
    record = read_record(path, _ManifestRecord, remedy, limit=_MAX_BYTES)
    manifest: dict[str, Any] = record.model_dump(exclude_unset=True)
    return manifest


def read_identity(work: Path) -> dict[str, Any]:
    """Return the content of `identity.json` of an unfinished run.

    Raises:
        RunError: The file is damaged.
    """
    remedy = f"Remove {work} and rerun the same command."
    identity: dict[str, Any] = read_record(work / IDENTITY, _IdentityRecord, remedy).model_dump(exclude_unset=True)
    return identity
