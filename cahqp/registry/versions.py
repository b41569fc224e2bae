"""Versions of a registry: one directory each, complete once its manifest exists, and never changed again."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cahqp import files
from cahqp.edge.package import package_files, read_package
from cahqp.edge.pointer import VERSION, VERSIONS
from cahqp.errors import CahqpError, RunError
from cahqp.records import Name, Record, Sha256, Text, read_record

FORMAT = 1
PARTIAL, TRASH = ".partial-", ".trash-"


class _VersionRecord(Record):
    """Content of `version.json`."""

    version: Name
    package: Sha256
    parents: list[Text]
    data: dict[str, Sha256]
    reason: Text | None
    files: dict[str, Sha256]


class Versions:
    """Directories under `versions/`.

    Args:
        registry: Directory of the registry.
    """

    def __init__(self, registry: Path) -> None:
        self.root = registry / VERSIONS

    def names(self) -> list[str]:
        """Return the names of all complete versions, oldest first."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if re.fullmatch(r"\d+-[0-9a-f]{8}", p.name))

    def read(self, name: str) -> dict[str, Any]:
        """Return a version's manifest.

        Raises:
            RunError: The version does not exist, or its manifest cannot be read.
        """
        if name not in self.names():
            message = f"{self.root} has no version {name}. It has {', '.join(self.names()) or 'none'}."
            raise RunError(message)
        record = read_record(self.root / name / VERSION, _VersionRecord, "It was changed: restore a copy.")
        return record.model_dump(exclude_unset=True)

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a version's manifest."""
        return files.sha256(self.root / name / VERSION)

    def add(self, package: Path, digest: str, provenance: Mapping[str, Any]) -> str:
        """Copy a package as a new version, or return the version with the same content.

        Args:
            package: Directory of the package.
            digest: Digest of the package, see `cahqp.edge.package.Package`.
            provenance: Further keys of the manifest: parents, data, metrics, decision.

        Returns:
            Name of the version. A partial copy never has such a name.

        Raises:
            RunError: The disk is full, or the registry cannot be written.
        """
        sources = package_files(package)
        manifest = {
            "format": FORMAT,
            "package": digest,
            **json.loads(json.dumps(dict(provenance))),
            "files": {source.name: files.sha256(source) for source in sources},
        }
        for name in self.names():
            if {k: v for k, v in self.read(name).items() if k != "version"} == manifest:
                return name
        numbers = [int(name.partition("-")[0]) for name in self.names()]
        name = f"{max(numbers, default=0) + 1:04d}-{digest[:8]}"
        work = self.root / f"{PARTIAL}{name}"
        if work.exists():
            shutil.rmtree(work)
        for source in sources:
            with files.atomic_write(work / source.name, "wb") as copy, source.open("rb") as original:
                shutil.copyfileobj(original, copy)
        files.write_json(work / VERSION, {**manifest, "version": name})
        problems = self._changed(work, manifest["files"])
        if problems:
            message = f"{package} was changed while it was copied: {'; '.join(problems)}. Rerun the same command."
            raise RunError(message)
        _rename(work, self.root / name)
        return name

    def problems(self, name: str, trusted: Path | None = None) -> list[str]:
        """Return one line for each problem of a version."""
        directory = self.root / name
        try:
            manifest = self.read(name)
            listed = dict(manifest["files"])
            package = read_package(directory, trusted)
        except (KeyError, TypeError, ValueError) as error:
            return [f"{directory / VERSION} was changed: it lacks {error}."]
        except CahqpError as error:
            return [str(error)]
        found = [f"{directory}: {problem}" for problem in self._changed(directory, listed)]
        if package.digest != manifest.get("package") or manifest.get("version") != name:
            found.append(f"{directory / VERSION} names another package or version: it was changed.")
        return found

    def remove(self, name: str) -> None:
        """Remove a version. An interrupted removal leaves a directory without a version's name."""
        trash = self.root / f"{TRASH}{name}"
        _rename(self.root / name, trash)
        shutil.rmtree(trash)

    def sweep(self) -> list[str]:
        """Remove the leftovers of killed commands and return their names."""
        if not self.root.is_dir():
            return []
        left = sorted(p for p in self.root.iterdir() if p.name.startswith((PARTIAL, TRASH)))
        for path in left:
            shutil.rmtree(path)
        return [path.name for path in left]

    def _changed(self, directory: Path, listed: Mapping[str, str]) -> list[str]:
        present = {p.name for p in directory.iterdir()} - {VERSION}
        problems = [f"{name} is missing" for name in sorted(listed.keys() - present)]
        problems += [f"{name} is not in {VERSION}" for name in sorted(present - listed.keys())]
        for name in sorted(present & listed.keys()):
            if hashlib.sha256((directory / name).read_bytes()).hexdigest() != listed[name]:
                problems.append(f"{name} was changed")
        return problems


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
        files.sync_directory(target.parent)
    except OSError as error:
        message = f"{target} cannot be written ({error.strerror}). Fix the registry's permissions, or free some space."
        raise RunError(message) from error
