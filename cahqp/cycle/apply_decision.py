"""`cahqp apply-decision`: carry out what a gate decided, and leave exactly one student that runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahqp import files
from cahqp.errors import RunError
from cahqp.runs.directory import RunDirectory

if TYPE_CHECKING:
    from cahqp.registry.registry import Registry

MODEL = "model.safetensors"
PACKAGE = "package"
DECISION = "decision.json"


def apply_decision(
    decision: Path,
    candidate: Path,
    running: Path,
    candidate_package: Path,
    running_package: Path,
    output: Path,
    registry: Path | None = None,
) -> None:
    """Take the candidate where the gate published it, the running student where it did not.

    Writes `model.safetensors`, its `package/` and `decision.json`; with a registry the package is promoted there first,
    and refused where the registry runs another version than the one that it was compared with.

    Args:
        decision: `decision.json` of `cahqp gate`.
        candidate: Model file of the candidate.
        running: Model file of the running student.
        candidate_package: What `cahqp export` made of the candidate.
        running_package: The running student's package.
        output: Directory to make.
        registry: Directory of the registry. Its first version is the student that runs now. Default none.
    """
    decided = files.read_json(decision)
    published = bool(decided["published"])
    model, package = (candidate, candidate_package) if published else (running, running_package)
    inputs = {"decision": decision, "candidate": candidate, "running": running}
    run = RunDirectory(output, "apply-decision", {"published": published}, inputs, seed=0)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    if registry is not None:
        _promote(registry, decided if published else None, candidate_package, running_package)
    _copy(model, run.work / MODEL)
    for path in sorted(p for p in package.rglob("*") if p.is_file()):
        _copy(path, run.work / PACKAGE / path.relative_to(package))
    files.write_json(run.work / DECISION, decided)
    run.finish({"published": published})
    print(decided["reason"])


def _promote(registry: Path, decision: dict[str, Any] | None, candidate: Path, running: Path) -> None:
    """Promote the candidate where a decision says so; an empty registry gets the running student first."""
    from cahqp.edge.package import read_package
    from cahqp.registry.registry import PromotionRequest, Registry

    found = Registry(registry)
    if found.pointer is None:
        found.promote(running, PromotionRequest(reason="the student that the cycle began with"))
    if decision is None:
        return
    now = found.pointer
    digests = {read_package(path).digest for path in (running, candidate)}  # killed before, it runs the candidate
    if now is not None and found.versions.read(now.version).get("package") not in digests:
        raise RunError(_elsewhere(found, now.version, running))
    found.promote(candidate, PromotionRequest(decision=decision))


def _elsewhere(registry: Registry, version: str, running: Path) -> str:
    """Say what a registry runs instead of the plan's student, and how to go on."""
    known = registry.version_of(running)
    back = f"rollback --registry {registry.root} --to {known}"
    new = f"promote --registry {registry.root} --package {running} --reason TEXT"
    return (
        f"{registry.root} runs {version}, not the student that this candidate was compared with: it was rolled back, "
        f"or another plan promotes into it. To let that student run again: `cahqp registry {back if known else new}`, "
        "then the same command. To leave the registry as it is, take `gate.registry` out of the plan."
    )


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as given, files.atomic_write(target, "wb") as copy:
        shutil.copyfileobj(given, copy)
