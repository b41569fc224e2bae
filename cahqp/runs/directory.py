"""Run directories: filled as `<output>.partial`, completed by a manifest and a rename, never overwritten."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from cahqp import files
from cahqp.coco.reader import read_coco_frames
from cahqp.errors import DataError, RunError
from cahqp.runs import locks
from cahqp.runs.manifest import IDENTITY, MANIFEST, read_identity, read_manifest
from cahqp.version import __version__

_State = dict[str, tuple[int, int, int, int]]
"""Inode, size in bytes, and times of the last write and change in nanoseconds of files by path."""

_MAX_CHANGES = 3

_WRITTEN_FIRST = (IDENTITY, "config.yaml", "hparams.yaml")
"""Files that a run writes before any result."""


class RunDirectory:
    """Output directory of one run, identified by command, version, seed, settings and input hashes.

    Write into `work` between `begin` and `finish`. After an interruption the next `begin` of the same command resumes
    with the contents of `work`. In a distributed run only rank zero calls `begin` and `finish`.

    Args:
        output: The finished directory. It may exist if it is empty.
        command: Name of the command, such as `relabel`.
        settings: All settings that decide the result, as JSON values without paths and times.
        inputs: Input files and directories by role (`weights`, `frames`).
        seed: Random seed.

    Attributes:
        metrics: Figures for the manifest, filled in by the block of `open_run`.
    """

    def __init__(
        self, output: Path, command: str, settings: Mapping[str, Any], inputs: Mapping[str, Path], seed: int
    ) -> None:
        self.output = Path(output)
        if self.output.name in ("", ".."):
            message = f"--output {output} is not a directory of its own. Give a new one, such as runs/{command}."
            raise RunError(message)
        self.command = command
        # A JSON round trip, so that a tuple here equals the list that is read back.
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings), allow_nan=False))
        self.inputs = {role: Path(path) for role, path in inputs.items()}
        self.seed = seed
        self.metrics: dict[str, Any] = {}

    @property
    def work(self) -> Path:
        """Directory to write into until `finish`."""
        return self.output.with_name(f"{self.output.name}.partial")

    @property
    def identity(self) -> dict[str, Any]:
        """Command, version, seed, settings and the SHA-256 of each input by role."""
        return self._identity_and_states[0]

    @cached_property
    def _identity_and_states(self) -> tuple[dict[str, Any], dict[str, _State]]:
        """The identity, and the state of each input's files before they were hashed."""
        states = {role: _state(path) for role, path in self.inputs.items()}
        identity = {
            "command": self.command,
            "version": __version__,
            "seed": self.seed,
            "settings": self.settings,
            "inputs": {role: content_hash(path, role) for role, path in self.inputs.items()},
        }
        return identity, states

    def begin(self) -> bool:
        """Start or resume the run, with an exclusive lock on the output until this process ends.

        Returns:
            False if the same run is already finished.

        Raises:
            RunError: `output` or `work` belong to another run, another process holds the lock, or the disk is full or
                read-only.
            DataError: An input is missing.
        """
        identity = self.identity
        locks.acquire(self.output)
        started = False
        try:
            if _occupied(self.output):
                _check_same(_identity_of(read_manifest(self.output)), identity, self.output)
            elif not self._completed_before_rename():
                self._open_work()
                started = True
        finally:
            if not started:
                locks.release(self.output)
        return started

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Hash the outputs, write the manifest last, and rename the directory.

        Args:
            metrics: Figures for the manifest, as JSON values; NaN and infinity are written as null.

        Raises:
            RunError: An input was changed since its hash was computed, the disk is full, or the directory cannot be
                written.
        """
        self._check_inputs()
        _remove_leftovers(self.work)
        manifest = {
            **self.identity,
            "inputs": {
                role: {"name": self.inputs[role].name, "sha256": digest}
                for role, digest in self.identity["inputs"].items()
            },
            "metrics": _finite(dict(metrics)),
            "outputs": hash_outputs(self.work, sync=True),
        }
        files.write_json(self.work / MANIFEST, manifest)
        self._rename()
        locks.release(self.output)

    def _check_inputs(self) -> None:
        """Check that the files of the inputs are those that were hashed. New files in a folder are allowed.

        Raises:
            RunError: A file was replaced, written or removed.
        """
        states = self._identity_and_states[1]
        changed = [role for role, state in states.items() if self._has_changed(role, state, _state(self.inputs[role]))]
        if changed:
            (self.work / IDENTITY).unlink(missing_ok=True)  # no attempt resumes from results of mixed origin
            files_of = ", ".join(f"{role} ({self.inputs[role]})" for role in changed)
            message = (
                f"Files of {files_of} were changed while the command ran, so its results have no known origin. Remove "
                f"{self.work}, and rerun the command while nothing writes to its inputs."
            )
            raise RunError(message)

    def _has_changed(self, role: str, before: _State, after: _State) -> bool:
        if any(after.get(name, ())[:3] != status[:3] for name, status in before.items()):
            return True
        # A rename, a hard link or new permissions change the last time alone.
        moved = any(after[name] != status for name, status in before.items())
        return moved and content_hash(self.inputs[role], role) != self.identity["inputs"][role]

    def discard_empty(self) -> None:
        """Remove the work of a run that failed before any result, so that a corrected command can use `output`."""
        if not any(path.is_file() and path.name not in _WRITTEN_FIRST for path in self.work.rglob("*")):
            shutil.rmtree(self.work, ignore_errors=True)
            locks.release(self.output)

    def _open_work(self) -> None:
        with _explained(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
            kept = self.work / IDENTITY
            if kept.exists():
                _check_same(read_identity(self.work), self.identity, self.work)
            elif any(not path.match(f".{IDENTITY}.*.tmp") for path in self.work.iterdir()):
                message = f"{self.work} was not started by cahqp {self.command}. Remove it, or choose another --output."
                raise RunError(message)
            _remove_leftovers(self.work)
            if not kept.exists():
                files.write_json(kept, self.identity)

    def _completed_before_rename(self) -> bool:
        """Complete a run that was interrupted between its manifest and its rename."""
        if not (self.work / MANIFEST).exists():
            return False
        if _identity_of(read_manifest(self.work)) != self.identity or verify(self.work):
            return False
        self._rename()
        return True

    def _rename(self) -> None:
        with _explained(self.output):
            self.work.rename(self.output)
            files.sync_directory(self.output.parent)
            (self.output / IDENTITY).unlink(missing_ok=True)


@contextmanager
def open_run(
    output: Path,
    command: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path],
    seed: int = 0,
    resumable: bool = False,
) -> Iterator[RunDirectory | None]:
    """Claim a run directory for a block that fills it, and complete it afterwards with the block's `metrics`.

    Yields `None`, after a message, if the same run is already finished.

    Args:
        output: As for `RunDirectory`, like all arguments but the last.
        command: The command that makes it.
        settings: Settings that decide the result.
        inputs: Files and directories that are read, by role.
        seed: Seed of all randomness.
        resumable: Keep partial work after an error, for the next attempt. Otherwise it is removed, so that a corrected
            command may use the same output.

    Raises:
        CahqpError: As `RunDirectory.begin` and `finish`, or from the block.
    """
    run = RunDirectory(output, command, settings, inputs, seed)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        yield None
        return
    try:
        yield run
    except BaseException:
        if resumable:
            run.discard_empty()
        else:
            shutil.rmtree(run.work, ignore_errors=True)
            locks.release(run.output)
        raise
    run.finish(run.metrics)


def verify(directory: Path) -> list[str]:
    """Compare a finished run with its manifest.

    Returns:
        One line per missing, changed or unknown file; empty if all match.
    """
    try:
        expected = read_manifest(directory)["outputs"]
    except RunError as error:
        return [str(error)]
    found = hash_outputs(Path(directory))
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not in the manifest" for name in found.keys() - expected.keys()]
    problems += [f"{name} was changed" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    return sorted(problems)


def hash_outputs(directory: Path, sync: bool = False) -> dict[str, str]:
    """Return the SHA-256 of each output file by relative path.

    Excluded are checkpoints and logs (they contain times), `config.yaml` (it contains paths), manifest and identity.

    Args:
        directory: A run directory.
        sync: Also sync each file to disk, so that after a power cut no manifest lacks its files.
    """
    hashes = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name = path.relative_to(directory)
        if not _is_hashed(name) or name.as_posix() in (MANIFEST, IDENTITY):
            continue
        if sync:
            files.sync_directory(path)  # files are synced in the same way
        hashes[name.as_posix()] = files.sha256(path)
    return hashes


def content_hash(path: Path, role: str = "input") -> str:
    """Return the SHA-256 of an input.

    It covers the bytes of a file, the manifest of a finished run, or the names and files of another directory. For the
    annotations of a finished run it covers the images too: traffic by day and by night can have equal boxes.

    Args:
        path: A file or a directory.
        role: Role of the input, for the error message.

    Raises:
        DataError: `path` does not exist.
    """
    if not (path.is_file() or path.is_dir()):
        message = f"{role}: {path} {'is not a file or a directory' if path.exists() else 'does not exist'}."
        raise DataError(message)
    if (path / MANIFEST).is_file():
        return files.sha256(path / MANIFEST)
    digest = files.sha256(path)
    if _has_images(path):
        return hashlib.sha256(f"{digest} {files.sha256(path.parent / MANIFEST)}".encode()).hexdigest()
    return digest


def _state(path: Path) -> _State:
    """Return inode, size, and times of the last write and change of each file of an input, by path.

    The files of a COCO file are its images.
    """
    state: _State = {}
    entries = [entry for entry in path.rglob("*") if _is_hashed(entry.relative_to(path))] if path.is_dir() else [path]
    if path.suffix == ".json" and path.is_file():
        with suppress(DataError):  # another kind of JSON file
            entries += read_coco_frames(path, sizes=False).files
    for entry in entries:
        with suppress(OSError):  # a missing file is reported by its reader
            status = entry.stat()
            if stat.S_ISREG(status.st_mode):
                state[str(entry)] = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return state


def _has_images(path: Path) -> bool:
    """Return whether a file is the annotations of a finished run, whose images belong to them."""
    return path.suffix == ".json" and (path.parent / MANIFEST).is_file() and (path.parent / "images").is_dir()


def _is_hashed(name: Path) -> bool:
    """Return whether a file of a run directory counts: not a checkpoint, a log, or the config with its paths."""
    return name.parts[:1] != ("checkpoints",) and name.suffix != ".log" and name.as_posix() != "config.yaml"


def _identity_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: manifest[key] for key in ("command", "version", "seed", "settings")}
    return {**kept, "inputs": {role: value["sha256"] for role, value in manifest["inputs"].items()}}


def _check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], directory: Path) -> None:
    old, new = _flat(found), _flat(wanted)
    nothing = "nothing"
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key, nothing) != new.get(key, nothing)]
    if not changed:
        return
    more = [f"  and {len(changed) - _MAX_CHANGES} more"] if len(changed) > _MAX_CHANGES else []
    lines = [
        f"  {key} is a different file" if key.startswith("inputs.") and key in old and key in new
        else f"  {key} was {old.get(key, nothing)}, is {new.get(key, nothing)}"
        for key in changed[:_MAX_CHANGES]
    ]  # fmt: skip
    message = "\n".join(
        [f"{directory} belongs to another run:", *lines, *more, f"Choose another --output, or remove {directory}."]
    )
    raise RunError(message)


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        pairs = [_flat(child, f"{prefix}.{key}" if prefix else str(key)) for key, child in value.items()]
        return {key: text for part in pairs for key, text in part.items()}
    return {prefix: json.dumps(value, sort_keys=True)}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _occupied(output: Path) -> bool:
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        message = f"{output} is not a directory of its own. Choose another --output."
        raise RunError(message)
    return output.exists() and any(output.iterdir())


def _remove_leftovers(directory: Path) -> None:
    """Remove temporary files of interrupted writes; see `cahqp.files.atomic_write`."""
    for path in directory.rglob(".*.tmp"):
        path.unlink()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = (
                f"The disk is full: {path} could not be written. Free some space and rerun the same command to resume."
            )
        else:
            message = f"{path} cannot be written ({error.strerror}). Choose another --output or fix its permissions."
        raise RunError(message) from error
