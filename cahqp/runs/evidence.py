"""Metrics and decisions as evidence: typed, bounded, and bound by hashes to the models, packages and frames."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cahqp.errors import RunError
from cahqp.files import sha256
from cahqp.records import Difference, Name, Record, Sha256, Share, Text, read_record
from cahqp.runs.directory import content_hash
from cahqp.runs.manifest import MANIFEST, read_manifest

ANALYSIS_ONLY = "analysis_only"
"""Mark in `metrics` of a manifest and in the provenance of a model file: the result depends on target labels that
`cahqp repair-labels` read, so it must not be published."""


class Subject(Record):
    """Package of a decision.

    Attributes:
        package: SHA-256 of its `package.json`; `None` if the package could not be measured.
    """

    package: Sha256 | None


class Verdict(Record):
    """Part that the `decision.json` of `cahqp gate` and of `cahqp publish` have in common.

    Attributes:
        published: Whether the candidate runs.
        reason: Reason in one sentence.
    """

    published: bool
    reason: Text


class _Set(Record):
    """Accuracy of two packages on one set."""

    candidate_ap50: Share
    running_ap50: Share
    difference: Difference
    low: Annotated[float, Field(ge=-2, le=2)] | None = None


class Decision(Verdict):
    """Content of the `decision.json` of `cahqp gate`.

    Attributes:
        candidate: Package that may run.
        running: Package that it was compared with.
        mean_difference: Mean difference in AP50, -1..1.
        sets: Measurements by set.
        frames: SHA-256 of the labelled files by role and name.
        runtime: Versions of the programs that measured.
    """

    candidate: Subject
    running: Subject
    mean_difference: Difference | None = None
    sets: dict[str, _Set] = Field(default_factory=dict)
    frames: dict[str, Sha256] = Field(default_factory=dict)
    runtime: dict[str, Text] = Field(default_factory=dict)


class _Accuracy(Record):
    ap50: Share | None


class _Inputs(Record):
    weights: dict[str, Sha256]
    frames: dict[str, Sha256]


class Metrics(Record):
    """Content of the `metrics.json` of `cahqp evaluate`.

    Attributes:
        models: Accuracy by model and set of frames.
        inputs: SHA-256 of the model files and of the labelled files by name. Metrics without it decide nothing.
    """

    models: dict[Name, dict[Name, _Accuracy]]
    inputs: _Inputs | None = None


def read_decision(path: Path) -> Decision:
    """Read the decision of a gate.

    Raises:
        RunError: The file has invalid entries, or is not the one that its run wrote.
    """
    decision = read_record(path, Decision, "Give the decision.json that `cahqp gate` wrote.")
    _check_origin(path, "gate")
    return decision


def read_verdict(path: Path) -> Verdict:
    """Read the decision of a cycle, by its gate or by `cahqp publish`.

    Raises:
        RunError: The file is missing or has invalid entries.
    """
    return read_record(path, Verdict, "Rerun the command of the cycle.")


def read_metrics(path: Path) -> Metrics:
    """Read the metrics of an evaluation.

    Raises:
        RunError: The file has invalid entries, or is not the one that its run wrote.
    """
    metrics = read_record(path, Metrics, "Give the metrics.json that `cahqp evaluate` wrote.")
    _check_origin(path, "evaluate")
    return metrics


def check_measured(path: Path, role: str, name: str, measured: dict[str, str], file: Path) -> None:
    """Check that a file is the measured one.

    Args:
        path: File of the metrics.
        role: `model` or `frames`.
        name: Name in the metrics.
        measured: SHA-256 by name.
        file: File of which `path` must be evidence.

    Raises:
        RunError: It is another file.
    """
    if measured.get(name) != content_hash(file, f"--{role}"):
        message = f"{path} was measured with another {role} as {name} than {file}. Run `cahqp evaluate` with this one."
        raise RunError(message)


def analysis_mark(inputs: Iterable[Path]) -> dict[str, bool]:
    """Return the mark of a result that must not be published, if an input has it; else an empty dictionary.

    Args:
        inputs: Directories of runs, or files in them.
    """
    folders = {path if path.is_dir() else path.parent for path in inputs}
    marked = any(
        read_manifest(folder)["metrics"].get(ANALYSIS_ONLY) for folder in folders if (folder / MANIFEST).is_file()
    )
    return {ANALYSIS_ONLY: True} if marked else {}


def _check_origin(path: Path, command: str) -> None:
    """Refuse a file that differs from the manifest of the run directory it is in. A copy elsewhere has no manifest."""
    if not (path.parent / MANIFEST).is_file():
        return
    manifest = read_manifest(path.parent)
    outputs = manifest["outputs"]
    if manifest["command"] != command or not isinstance(outputs, dict) or outputs.get(path.name) != sha256(path):
        message = f"{path} is not the file that `cahqp {command}` wrote to {path.parent}. Run `cahqp {command}` again."
        raise RunError(message)
