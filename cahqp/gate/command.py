"""`cahqp gate`: comparison of a candidate package with the running package, and the decision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Event, Timer
from typing import Any

from cahqp.edge.detections import Floats
from cahqp.edge.package import find_package, read_package
from cahqp.edge.pointer import RUNNING, read_pointer
from cahqp.edge.runtime import RawOutput, Runtime
from cahqp.edge.signing import public_fingerprint
from cahqp.errors import CahqpError, ConfigError, RunError, WeightsError
from cahqp.files import atomic_write, write_json
from cahqp.gate.decision import Role, check_roles, decide, refuse
from cahqp.gate.distinct import check_distinct
from cahqp.gate.evidence import LabelledSet, advise, collect, measure_costs
from cahqp.gate.options import GateOptions
from cahqp.runs.directory import open_run
from cahqp.version import __version__


class _RunningRuntime(Runtime):
    """Runtime of the running package. Its failure is an error, not a reason to refuse the candidate."""

    def infer(self, images: Floats) -> RawOutput:
        try:
            return super().infer(images)
        except WeightsError as error:
            raise RunError(str(error)) from error


def gate(options: GateOptions) -> None:
    """Write the decision to `decision.json` and print its reason.

    Raises:
        ConfigError: There is no set that may decide, a set has too few objects, or two sets have one name.
        DataError: A labelled file or its frames cannot be read, or a labelled frame occurs twice.
        RunError: The running package is missing, was changed, or fails during inference.
    """
    sets = _labelled_sets(options)
    check_roles([labelled.role for labelled in sets])
    running = find_package(options.running)
    inputs = {"candidate": options.candidate, "running": running}
    for labelled in sets:
        first, *others = labelled.paths
        key = f"{labelled.role}.{labelled.name}"
        inputs |= {key: first} | {f"{key}.{number}": path for number, path in enumerate(others, 2)}
    inputs |= {} if options.labels is None else {"labels": options.labels}
    settings = {
        "limits": options.by_name(),
        "resamples": options.resamples,
        "min_objects": options.min_objects,
        "sets": [[labelled.role, labelled.name] for labelled in sets],
    }
    if options.trusted is not None:  # a decision made without the check is not one about a checked package
        settings["key"] = public_fingerprint(options.trusted)
    with open_run(options.output, "gate", settings, inputs, options.seed) as run:
        if run is None:
            return
        decision = _decision(options, sets, run.work)
        hashes = run.identity["inputs"]
        decision["frames"] = {role: hashes[role] for role in hashes if role not in ("candidate", "running", "labels")}
        decision["runtime"] = {"cahqp": __version__, "onnxruntime": version("onnxruntime")}
        write_json(run.work / "decision.json", decision)
        run.metrics = {name: decision[name] for name in ("published", "mean_difference")}
    print(decision["reason"])


def _decision(options: GateOptions, sets: list[LabelledSet], work: Path) -> dict[str, Any]:
    """Return the decision. A candidate that cannot be measured is refused; for the running package it is an error."""
    signed = (options.running / RUNNING).is_file() and read_pointer(options.running / RUNNING).key is not None
    old = _RunningRuntime(read_package(options.running, options.trusted if signed else None))
    check_distinct([path for labelled in sets for path in labelled.paths], old.classes)
    try:
        new = Runtime(read_package(options.candidate, options.trusted))
        with _time_limit(options.max_minutes, new, old):
            decision = _measured_decision(new, old, sets, options, work)
        decision["candidate"] = {"package": new.package.digest}
    except WeightsError as error:
        decision = refuse(str(error), options) | {"candidate": {"package": None}}
    return decision | {"running": {"package": old.package.digest}}


@contextmanager
def _time_limit(minutes: float, *runtimes: Runtime) -> Iterator[None]:
    """End the inference of runtimes after some minutes.

    Raises:
        RunError: The time is over. It depends on the load of this machine, so it is no reason to refuse the candidate.
    """
    from onnxruntime import RunOptions

    limit, expired = RunOptions(), Event()

    def stop() -> None:
        expired.set()
        limit.terminate = True

    for runtime in runtimes:
        runtime.stop_at(limit)
    timer = Timer(60 * minutes, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except CahqpError as error:
        if not expired.is_set():
            raise
        message = f"The gate did not end within {minutes:g} minutes. Give fewer frames, or raise --max-minutes."
        raise RunError(message) from error
    finally:
        timer.cancel()


def _measured_decision(
    new: Runtime, old: Runtime, sets: list[LabelledSet], options: GateOptions, work: Path
) -> dict[str, Any]:
    if new.classes != old.classes:
        message = (
            f"{new.package.path} has the classes {', '.join(new.classes)}, the running package "
            f"{', '.join(old.classes)}."
        )
        raise WeightsError(message)
    evidence, unjudged = [], []
    for labelled in sets:
        measured = collect(new, old, labelled, options)
        if measured is not None:
            evidence.append(measured)
        elif labelled.role == "replay":
            unjudged.append(labelled.name)
        else:
            message = (
                f"{', '.join(map(str, labelled.paths))}: no class has {options.min_objects} objects (--min-objects). "
                f"Give more frames, or remove the set from --{labelled.role}."
            )
            raise ConfigError(message)
    new_cost, old_cost = measure_costs(new, old)
    # Times go to a log, which is not hashed: the decision must not depend on the load of this machine.
    with atomic_write(work / "times.log") as file:
        file.write(f"candidate {new_cost.milliseconds:.2f} ms, running {old_cost.milliseconds:.2f} ms a run\n")
    print(f"One run takes {new_cost.milliseconds:.1f} ms, one of the running package {old_cost.milliseconds:.1f} ms.")
    decision = decide(evidence, options, new_cost, old_cost) | {"unjudged": unjudged}
    return decision if options.labels is None else decision | {"advice": advise(new, old, options.labels)}


def _labelled_sets(options: GateOptions) -> list[LabelledSet]:
    roles: list[tuple[Role, list[str]]] = [
        ("source", options.source), ("replay", options.replay), ("canary", options.canary),
    ]  # fmt: skip
    sets: dict[str, LabelledSet] = {}
    for role, values in roles:
        for number, value in enumerate(values, start=1):
            name, sign, path = value.partition("=")
            if not sign:
                name, path = (role if number == 1 else f"{role}-{number}"), value
            if not name or not path:
                message = f"--{role} {value!r} names no file. Give FILE or NAME=FILE."
                raise ConfigError(message)
            labelled = sets.setdefault(name, LabelledSet(role, name, []))
            if labelled.role != role or (labelled.paths and not sign):
                message = f"Two sets are named {name}. Give each its own name: --{role} NAME=FILE."
                raise ConfigError(message)
            labelled.paths.append(Path(path))
    return list(sets.values())
