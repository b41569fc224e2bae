"""`cahqp apply-decision`: carry out the decision of a gate, so that exactly one student runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cahqp import files
from cahqp.cycle.publish import copy_whole
from cahqp.edge.package import read_package
from cahqp.errors import RunError
from cahqp.runs.directory import open_run
from cahqp.runs.evidence import Decision, read_decision

if TYPE_CHECKING:
    from cahqp.registry.registry import Registry


@dataclass(frozen=True, kw_only=True)
class ApplyDecisionOptions:
    """Take the candidate if the gate published it, else the running student.

    Writes `model.safetensors`, its `package/` and `decision.json`. With a registry the package is first promoted there.
    This is refused if the registry runs a version other than the one the candidate was compared with.

    Attributes:
        decision: `decision.json` of `cahqp gate`.
        candidate: Model file of the candidate.
        running: Model file of the running student.
        candidate_package: Package of the candidate, written by `cahqp export`.
        running_package: Package of the running student.
        output: New directory for the student.
        registry: Directory of the registry. Its first version is the running student. Default: no registry.
        trusted: Ed25519 public key (PEM) that must have signed the packages. Required if the registry has a key.
        key: Its private key (PEM), which signs the pointer of the registry. Required if the pointer is signed.
    """

    decision: Path
    candidate: Path
    running: Path
    candidate_package: Path
    running_package: Path
    output: Path
    registry: Path | None = None
    trusted: Path | None = None
    key: Path | None = None


def apply_decision(options: ApplyDecisionOptions) -> None:
    """Run `cahqp apply-decision`."""
    decision = read_decision(options.decision)
    published = decision.published
    _check_subjects(decision, options)
    inputs = {"decision": options.decision, "candidate": options.candidate, "running": options.running}
    with open_run(options.output, "apply-decision", {"published": published}, inputs) as run:
        if run is None:
            return
        if options.registry is not None:
            _promote(options.registry, decision if published else None, options)
        package = options.candidate_package if published else options.running_package
        copy_whole(options.candidate if published else options.running, run.work / "model.safetensors")
        for path in sorted(p for p in package.rglob("*") if p.is_file()):
            copy_whole(path, run.work / "package" / path.relative_to(package))
        files.write_json(run.work / "decision.json", decision.model_dump(exclude_unset=True))
        run.metrics = {"published": published}
    print(decision.reason)


def _check_subjects(decision: Decision, options: ApplyDecisionOptions) -> None:
    """Refuse a decision about other packages, and packages of other model files."""
    subjects = [(decision.running, options.running_package, options.running)]
    if decision.published or decision.candidate.package is not None:
        subjects.append((decision.candidate, options.candidate_package, options.candidate))
    for subject, path, model in subjects:
        package = read_package(path)
        if subject.package != package.digest:
            message = f"{options.decision} belongs to another package than {path}. Run the gate on this package."
            raise RunError(message)
        if package.manifest["weights"] != model_hash(model):
            message = f"{path} was not exported from {model}. Give the package of this model file."
            raise RunError(message)


def model_hash(path: Path) -> str:
    """Return the content hash of a model file after comparing it with the content.

    Raises:
        WeightsError: The file is missing, or was changed.
    """
    from cahqp.detectors import model_file  # imports torch

    return str(model_file.load(path).provenance["hash"])


def _promote(directory: Path, decision: Decision | None, options: ApplyDecisionOptions) -> None:
    """Promote the candidate with its decision, if any. An empty registry receives the running student first."""
    from cahqp.registry.registry import PromotionRequest, Registry

    registry = Registry(directory)
    packages = (options.running_package, options.candidate_package)
    if registry.pointer is None:
        request = PromotionRequest(reason="the student at the start of the cycle")
        registry.promote(packages[0], request, options.trusted, options.key)
    if decision is None:
        return
    current = registry.pointer
    digests = {read_package(path).digest for path in packages}  # an interrupted attempt may have promoted the candidate
    if current is not None and registry.versions.read(current.version).get("package") not in digests:
        raise RunError(_other_version(registry, current.version, packages[0]))
    registry.promote(packages[1], PromotionRequest(decision=decision), options.trusted, options.key)


def _other_version(registry: Registry, version: str, running: Path) -> str:
    """Return a message that a registry runs another student than the plan's, with the commands to continue."""
    previous = registry.version_of(running)
    rollback = f"rollback --registry {registry.root} --to {previous}"
    promote = f"promote --registry {registry.root} --package {running} --reason TEXT"
    return (
        f"{registry.root} runs {version}, not the student that this candidate was compared with: it was rolled back, "
        f"or another plan promotes into it. To run that student again: `cahqp registry "
        f"{rollback if previous else promote}`, then rerun the same command. To leave the registry unchanged, remove "
        "`gate.registry` from the plan."
    )
