"""Stages and the state file that records which of them are finished."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from cahqp import files, records
from cahqp.errors import ConfigError, DataError
from cahqp.records import Name, Sha256, read_record
from cahqp.runs.directory import content_hash
from cahqp.runs.manifest import MANIFEST
from cahqp.version import __version__
from cahqp.yaml_policy import read_yaml


@dataclass(frozen=True)
class Stage:
    """One command with its inputs and its output.

    Attributes:
        name: Name of the stage's directory and log.
        arguments: Command line after `cahqp`.
        inputs: Files and directories whose contents decide the result, in order of use.
        output: Directory that the command makes.
    """

    name: str
    arguments: tuple[str, ...]
    inputs: tuple[Path, ...]
    output: Path

    @property
    def partial(self) -> Path:
        """The directory of unfinished work."""
        return self.output.with_name(f"{self.output.name}.partial")

    @property
    def manifest_digest(self) -> str | None:
        """The SHA-256 of the manifest, or `None` without one."""
        manifest = self.output / MANIFEST
        return files.sha256(manifest) if manifest.is_file() else None


@dataclass(frozen=True)
class Record:
    """State of one stage.

    Attributes:
        key: Hash of everything that decides the result; see `State.key`.
        manifest_digest: SHA-256 of the manifest; `None` until the stage is finished.
        seconds: Total time over all attempts.
        code: SHA-256 of the Python files of the package that finished the stage; `None` until then.
    """

    key: str
    manifest_digest: str | None = None
    seconds: float = 0.0
    code: str | None = None


class _StageRecord(records.Record):
    key: Name
    manifest_digest: Sha256 | None = None
    seconds: Annotated[float, Field(ge=0)] = 0.0
    code: Name | None = None


class _StateRecord(records.Record):
    """Content of `state.json`: a record for each stage."""

    __pydantic_extra__: dict[str, _StageRecord]


class State:
    """State file `state.json` of a directory of stages. Losing it costs time only: commands detect finished runs.

    Args:
        root: The directory of the stages.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "state.json"
        self.records: dict[str, Record] = {}
        if self.path.exists():
            stages = read_record(self.path, _StateRecord, "Remove it and rerun the same command.").model_extra or {}
            names = Record.__dataclass_fields__
            self.records = {stage: Record(**{n: getattr(found, n) for n in names}) for stage, found in stages.items()}

    def key(self, stage: Stage) -> str | None:
        """Hash what decides a stage's result: arguments, contents of inputs, and version of cahqp.

        Returns:
            The SHA-256, or `None` while an input is missing.

        Raises:
            ConfigError: A config among the inputs is not valid YAML.
        """
        try:
            inputs = [_input_hash(path) for path in stage.inputs]
        except DataError:
            return None
        # Contents, not locations: a cycle and its data can be moved.
        arguments = list(stage.arguments)
        for index, path in enumerate([*stage.inputs, self.root]):
            arguments = [argument.replace(str(path), f"{{{index}}}") for argument in arguments]
        return hashlib.sha256(json.dumps([__version__, arguments, inputs]).encode()).hexdigest()

    def is_done(self, stage: Stage, key: str | None) -> bool:
        """Return whether the finished run on disk was made from `key`."""
        record = self.records.get(stage.name)
        if record is None or record.key != key or record.manifest_digest is None:
            return False
        return record.manifest_digest == stage.manifest_digest

    def is_stale(self, stage: Stage, key: str | None) -> bool:
        """Return whether the run on disk, finished or not, was made from another key."""
        record = self.records.get(stage.name)
        return record is not None and record.key != key and _exists(stage)

    def begin(self, stage: Stage, key: str) -> None:
        """Record the start of an attempt."""
        record = self.records.get(stage.name)
        resumed = record is not None and record.key == key and _exists(stage)
        self._write(stage, Record(key, None, record.seconds if record and resumed else 0.0))

    def end(self, stage: Stage, seconds: float, finished: bool) -> None:
        """Record the end of an attempt."""
        record = self.records[stage.name]
        result = (stage.manifest_digest, code_hash()) if finished else (None, None)
        self._write(stage, Record(record.key, result[0], record.seconds + seconds, result[1]))

    def set_aside(self, stage: Stage) -> Path:
        """Move a stage's directories to `stale/` and return their new location."""
        number = 1
        while (aside := self.root / "stale" / f"{stage.name}-{number}").exists():
            number += 1
        aside.mkdir(parents=True)
        for path in (stage.output, stage.partial):
            if path.exists():
                path.rename(aside / path.name)
        return aside

    def _write(self, stage: Stage, record: Record) -> None:
        self.records[stage.name] = record
        files.write_json(self.path, {name: asdict(value) for name, value in self.records.items()})


@cache
def code_hash() -> str:
    """Return the SHA-256 of the package's Python files, which may differ within one version."""
    root = Path(__file__).parents[1]
    lines = [f"{path.relative_to(root).as_posix()} {files.sha256(path)}" for path in sorted(root.rglob("*.py"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _exists(stage: Stage) -> bool:
    return stage.output.exists() or stage.partial.exists()


def _input_hash(path: Path) -> str:
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return content_hash(path)
    try:
        parsed = read_yaml(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"{path} is not readable YAML ({error}). Fix it and rerun the same command."
        raise ConfigError(message) from error
    # Parsed values: a comment changes nothing.
    return hashlib.sha256(json.dumps(parsed, sort_keys=True, default=str).encode()).hexdigest()
