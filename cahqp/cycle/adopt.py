"""`cahqp adopt`: carry out what a gate decided, and leave exactly one student that runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cahqp import files
from cahqp.cycle.manifest import RunDirectory

MODEL = "model.safetensors"
PACKAGE = "package"
DECISION = "decision.json"


def adopt(
    decision: Path,
    candidate: Path,
    running: Path,
    candidate_package: Path,
    running_package: Path,
    output: Path,
    registry: Path | None = None,
) -> None:
    """Take the candidate where the gate published it, the running student where it did not.

    Writes `model.safetensors`, its `package/` and `decision.json`; with a registry the package is promoted there first.

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
    run = RunDirectory(output, "adopt", {"published": published}, inputs, seed=0)
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
    from cahqp.cycle.registry import Claim, Registry

    found = Registry(registry)
    if found.pointer is None:
        found.promote(running, Claim(reason="the student that the cycle began with"))
    if decision is not None:
        found.promote(candidate, Claim(decision=decision))


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as given, files.atomic_write(target, "wb") as copy:
        shutil.copyfileobj(given, copy)
