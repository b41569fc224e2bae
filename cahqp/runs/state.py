"""What a cycle remembers of its stages, and what it can tell without it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import yaml

import cahqp
from cahqp import files
from cahqp.runs.directory import MANIFEST, content_hash
from cahqp.cycle.stages import Stage
from cahqp.errors import ConfigError, DataError, RunError


@dataclass(frozen=True)
class Record:
    """What is remembered of one stage.

    Attributes:
        key: What it was made from; see `State.key`.
        manifest_digest: SHA-256 of its manifest; `None` until it is finished.
        seconds: Time it took, over all its attempts.
        code: SHA-256 of the package's Python files that finished it; `None` until then, and in files of older versions.
    """

    key: str
    manifest_digest: str | None = None
    seconds: float = 0.0
    code: str | None = None


class State:
    """The file `state.json` of a cycle. Nothing is lost with it but time: stages know their own finished runs.

    Args:
        root: The cycle's directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "state.json"
        self.records: dict[str, Record] = {}
        if self.path.exists():
            try:
                self.records = {name: Record(**record) for name, record in files.read_json(self.path).items()}
            except (RunError, TypeError, AttributeError) as error:
                message = f"{self.path} is damaged ({error}). Remove it and run the same command again."
                raise RunError(message) from error

    def key(self, stage: Stage) -> str | None:
        """Hash what decides a stage's result: its arguments, the contents of its inputs, and our version.

        Returns:
            The SHA-256, or `None` while an input is missing.

        Raises:
            ConfigError: A config among the inputs is no YAML.
        """
        try:
            inputs = [_input_hash(path) for path in stage.inputs]
        except DataError:
            return None
        # By what files hold, not by where they are: a cycle and its data can be moved.
        arguments = list(stage.arguments)
        for index, path in enumerate([*stage.inputs, self.root]):
            arguments = [argument.replace(str(path), f"{{{index}}}") for argument in arguments]
        return hashlib.sha256(json.dumps([cahqp.__version__, arguments, inputs]).encode()).hexdigest()

    def is_done(self, stage: Stage, key: str | None) -> bool:
        """Say whether the finished run that is there was made from `key`."""
        record = self.records.get(stage.name)
        return record is not None and record.key == key and record.manifest_digest is not None and record.manifest_digest == manifest_digest(stage)

    def is_stale(self, stage: Stage, key: str | None) -> bool:
        """Say whether what is there, finished or not, was made from something else than `key`."""
        record = self.records.get(stage.name)
        return record is not None and record.key != key and any(path.exists() for path in _directories(stage))

    def begin(self, stage: Stage, key: str) -> None:
        """Remember what a stage is being made from."""
        record = self.records.get(stage.name)
        same = record is not None and record.key == key and any(path.exists() for path in _directories(stage))
        self._write(stage, Record(key, None, record.seconds if record and same else 0.0))

    def end(self, stage: Stage, seconds: float, finished: bool) -> None:
        """Remember how an attempt ended."""
        record = self.records[stage.name]
        spent = record.seconds + seconds
        done = Record(record.key, manifest_digest(stage), spent, code_hash()) if finished else Record(record.key, None, spent)
        self._write(stage, done)

    def set_aside(self, stage: Stage) -> Path:
        """Move what is there to `stale/`, so that nothing is overwritten.

        Returns:
            Where it is now.
        """
        number = 1
        while (aside := self.root / "stale" / f"{stage.name}-{number}").exists():
            number += 1
        aside.mkdir(parents=True)
        for path in _directories(stage):
            if path.exists():
                path.rename(aside / path.name)
        return aside

    def _write(self, stage: Stage, record: Record) -> None:
        self.records[stage.name] = record
        files.write_json(self.path, {name: asdict(value) for name, value in self.records.items()})


@cache
def code_hash() -> str:
    """Return the SHA-256 of the package's Python files: two states of one version may differ in what they do."""
    root = Path(cahqp.__file__).parent
    told = [f"{path.relative_to(root).as_posix()} {files.sha256(path)}" for path in sorted(root.rglob("*.py"))]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def partial(stage: Stage) -> Path:
    """Return the directory of a stage's unfinished work."""
    return stage.output.with_name(f"{stage.output.name}.partial")


def manifest_digest(stage: Stage) -> str | None:
    """Return the SHA-256 of a stage's manifest, or `None` without one."""
    manifest = stage.output / MANIFEST
    return files.sha256(manifest) if manifest.is_file() else None


def _directories(stage: Stage) -> tuple[Path, Path]:
    return stage.output, partial(stage)


def _input_hash(path: Path) -> str:
    if path.suffix in (".yaml", ".yml") and path.is_file():
        # What a config says; a comment changes nothing.
        try:
            parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            message = f"{path} is not readable YAML ({error}). Mend it and run the same command again."
            raise ConfigError(message) from error
        said = json.dumps(parsed, sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()
    return content_hash(path)
