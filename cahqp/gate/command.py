"""`cahqp gate`: measure a candidate package beside the running one, and write the decision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.edge.package import find_package, read_package
from cahqp.edge.runtime import Runtime
from cahqp.errors import ConfigError, RunError, WeightsError, check_numbers
from cahqp.files import atomic_write, write_json
from cahqp.gate.decision import Role, check_sets, decide, refuse
from cahqp.gate.evidence import advise, collect, costs
from cahqp.gate.options import GateLimits
from cahqp.runs.directory import RunDirectory
from cahqp.runs.whole import whole_or_nothing


@dataclass(frozen=True)
class _Set:
    """Labelled frames that are judged together."""

    role: Role
    name: str
    paths: list[Path]

    def inputs(self) -> dict[str, Path]:
        """Return the files by what the manifest calls them."""
        first, *more = self.paths
        return {f"{self.role}.{self.name}": first} | {f"{self.role}.{self.name}.{n}": p for n, p in enumerate(more, 2)}


class _Running(Runtime):
    """The running package: where it fails, the candidate is not to blame."""

    def answer(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        try:
            return super().answer(images)
        except WeightsError as error:
            raise RunError(str(error)) from error


def gate(
    candidate: Path,
    running: Path,
    output: Path,
    source: list[str] | None = None,
    replay: list[str] | None = None,
    canary: list[str] | None = None,
    labels: Path | None = None,
    max_ap50_drop: float = 0.01,
    max_class_ap50_drop: float = 0.05,
    max_slowdown: float = 1.5,
    max_milliseconds: float | None = None,
    max_growth: float = 1.5,
    max_megabytes: float | None = None,
    trusted: Path | None = None,
    min_objects: int = 20,
    resamples: int = 1000,
    seed: int = 0,
) -> None:
    """Decide whether a candidate package may replace the running one, and write why as `decision.json`.

    It may if on every set the lower 95 % bound of its difference in AP50 stays above -`loss`, and its mean is not below
    the running one's: on the canary where there is one, else over all sets. Ends with 0 either way.

    Args:
        candidate: What `cahqp export` wrote.
        running: The package that runs, or the registry that says which.
        output: Directory to make; never overwritten.
        source: COCO files of the labelled source's validation; each may be NAME=FILE.
        replay: COCO files of past domains; each may be NAME=FILE, and files of one NAME are judged as one set.
        canary: Small COCO files of the target with labels; each may be NAME=FILE. Needed where there is no source.
        labels: The adapted teacher's labels on target frames that were held out; advice only.
        max_ap50_drop: AP50 in 0..1 that the lower bound may lie below.
        max_class_ap50_drop: AP50 in 0..1 that a single class may lose, unless by accident.
        max_slowdown: Times as long as the running package that a run may take.
        max_milliseconds: Longest time of a run on this machine.
        max_growth: Times as large as the running package's model that the candidate's may be.
        max_megabytes: Largest model.
        trusted: Ed25519 public key (PEM) that the candidate must be signed with.
        min_objects: Objects that a class must have in a set to count there; fewer say more of chance than of a package.
        resamples: Draws of the bootstrap.
        seed: Of the bootstrap.
    """
    check_numbers({}, {"--resamples": resamples, "--min_objects": min_objects})
    limits = GateLimits(
        max_ap50_drop=max_ap50_drop, max_class_ap50_drop=max_class_ap50_drop, max_slowdown=max_slowdown,
        max_milliseconds=max_milliseconds, max_growth=max_growth, max_megabytes=max_megabytes,
    )  # fmt: skip
    sets = _sets(source, replay, canary)
    check_sets([one.role for one in sets])
    place = find_package(running)
    inputs = {"candidate": candidate, "running": place} | {k: path for one in sets for k, path in one.inputs().items()}
    inputs |= {} if labels is None else {"labels": labels}
    settings = {
        "limits": vars(limits),
        "resamples": resamples,
        "min_objects": min_objects,
        "sets": [[one.role, one.name] for one in sets],
    }
    run = RunDirectory(output, "gate", settings, inputs, seed)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    with whole_or_nothing(run):
        decision = _decision(candidate, place, trusted, sets, labels, limits, run, (min_objects, resamples))
        write_json(run.work / "decision.json", decision)
        run.finish({"published": decision["published"], "mean_difference": decision["mean_difference"]})
    print(decision["reason"])


def _decision(
    candidate: Path, running: Path, trusted: Path | None, sets: list[_Set], labels: Path | None,
    limits: GateLimits, run: RunDirectory, counts: tuple[int, int],
) -> dict[str, Any]:  # fmt: skip
    """Return the decision: a candidate that cannot be measured is refused; that the running one cannot is an error."""
    old = _Running(read_package(running))
    try:
        new = Runtime(read_package(candidate, trusted))
        decision = _measured(new, old, sets, labels, limits, run, *counts)
        decision["candidate"] = {"package": new.package.digest}
    except WeightsError as error:
        decision = refuse(str(error), limits) | {"candidate": {"package": None}}
    return decision | {"running": {"package": old.package.digest}}


def _measured(
    new: Runtime, old: Runtime, sets: list[_Set], labels: Path | None, limits: GateLimits,
    run: RunDirectory, min_objects: int, resamples: int,
) -> dict[str, Any]:  # fmt: skip
    if new.classes != old.classes:
        message = (
            f"{new.package.path} is for other classes ({', '.join(new.classes)}) than the running "
            f"{', '.join(old.classes)}."
        )
        raise WeightsError(message)
    evidence, unjudged = [], []
    for one in sets:
        found = collect(
            new, old, one.role, one.name, one.paths, min_objects=min_objects, seed=run.seed, resamples=resamples
        )  # fmt: skip
        if found is not None:
            evidence.append(found)
        elif one.role == "replay":
            unjudged.append(one.name)
        else:
            message = (
                f"{', '.join(map(str, one.paths))}: no class has {min_objects} objects (--min_objects). Give "
                "more frames, or leave it out."
            )
            raise ConfigError(message)
    ours, theirs = costs(new, old)
    # A log, which no hash covers: a decision made again after a kill must not differ by how busy the machine was.
    with atomic_write(run.work / "times.log") as file:
        file.write(f"candidate {ours.milliseconds:.2f} ms, running {theirs.milliseconds:.2f} ms a run\n")
    print(f"One run takes {ours.milliseconds:.1f} ms; the running package's takes {theirs.milliseconds:.1f} ms.")
    decision = decide(evidence, limits, ours, theirs) | {"unjudged": unjudged}
    return decision if labels is None else decision | {"advice": advise(new, old, labels)}


def _sets(source: list[str] | None, replay: list[str] | None, canary: list[str] | None) -> list[_Set]:
    roles: list[tuple[Role, list[str]]] = [("source", source or []), ("replay", replay or []), ("canary", canary or [])]
    sets: dict[str, _Set] = {}
    for role, given in roles:
        for number, text in enumerate(given, start=1):
            name, sign, path = text.partition("=")
            if not sign:
                name, path = (role if number == 1 else f"{role}-{number}"), text
            known = sets.setdefault(name, _Set(role, name, []))
            if known.role != role or (known.paths and not sign):
                message = f"Two sets are called {name}. Give each of them a name of its own: --{role} NAME=FILE."
                raise ConfigError(message)
            known.paths.append(Path(path))
    return list(sets.values())
