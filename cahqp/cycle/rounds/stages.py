"""Stages of a plan of rounds. The stages of a round depend on the results of its drift test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cahqp.cycle.replay_buffer import BUFFER, NEW, PAST, free_name, read_buffer
from cahqp.cycle.rounds.incoming import incoming
from cahqp.cycle.rounds.plan import Drift, Gate, Round, RoundsPlan
from cahqp.cycle.stages import MODEL, VALIDATION, PlanStages
from cahqp.drift.options import FAULT, DriftSettings
from cahqp.drift.result import read_drift
from cahqp.errors import option
from cahqp.gate.options import GateLimits
from cahqp.runs.evidence import read_verdict
from cahqp.runs.options import flags

_NO_BUDGET = 1_000_000


@dataclass(frozen=True)
class Running:
    """The running student, and the results of earlier rounds.

    Attributes:
        model: Model file of the student.
        package: Package of the student. It exists only with a gate.
        buffer: Replay buffer; `None` before the first round.
        features: Features that later rounds compare with, by name.
    """

    model: Path
    package: Path
    buffer: Path | None = None
    features: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True)
class Frames:
    """Frames of one adaptation.

    Attributes:
        target: Folders, videos or COCO files.
        frame_interval: Seconds between the frames taken from videos; `None` takes all frames.
        features: Directory of their features.
    """

    target: list[Path]
    frame_interval: float | None
    features: Path


class RoundStages(PlanStages):
    """Builder of the stages of a plan of rounds, as far as they are determined.

    A round without a drift result counts as drifted.

    Args:
        plan: A valid plan.
        root: Directory of the cycle.
    """

    plan: RoundsPlan

    def __init__(self, plan: RoundsPlan, root: Path) -> None:
        super().__init__(plan, root)
        self.tests = list(zip(plan.tests, self.locate(list(plan.tests.values())), strict=True))
        self.running = Running(self.old_student, root / "export-start")
        self.fetched: list[Path] = []
        self.scenes()
        self.source_training()
        if plan.drift is not None:
            self._features("features-source", self.source_train)
        if plan.gate is not None:
            self._export("export-start", self.old_student, plan.gate)
        rounds, watch = plan.rounds, plan.watch
        if watch is not None:
            names = incoming(root)
            rounds = [Round(name=n, frames=watch.frames, frame_interval=watch.frame_interval) for n in names]
        for number, each in enumerate(rounds, 1):
            self._round(f"round-{number:02d}", each)

    def _round(self, prefix: str, each: Round) -> None:
        """Add a round's stages."""
        frames = Frames(self.locate(each.train), each.frame_interval, self.root / prefix / "features")
        if each.frames is not None:
            self.fetched.append(self._fetch(f"{prefix}/fetch", each))
            frames = Frames([self.fetched[-1] / "frames.json"], None, frames.features)
        if self.plan.drift or self.plan.replay or self.plan.budget:
            self._features(f"{prefix}/features", frames.target, frames.frame_interval)
        groups: Sequence[list[str] | None] = [None]
        if self.plan.drift is not None:
            groups = _adapted_groups(self._drift(f"{prefix}/drift", self.plan.drift, frames.features), self.plan.drift)
        places = [f"{prefix}/group-{n}" if len(groups) > 1 else prefix for n in range(1, len(groups) + 1)]
        for place, cameras in zip(places, groups, strict=True):
            self._group(place, each.name, frames, cameras)
        if self.plan.drift is None:
            return
        # Only domains that the running student has learnt become references. Otherwise a night whose candidate was
        # rejected would count as steady ever after, and gradual dusk would never count as drift.
        for place, cameras in zip(places, groups, strict=True):
            decision = self.root / place / "published" / "decision.json"
            if decision.is_file() and not read_verdict(decision).published:
                continue
            own = self._sample(f"{place}/known", frames.features, cameras, _NO_BUDGET) if cameras else frames.features
            reference = (f"{each.name}-{place.replace('/', '-')}", own)
            self.running = replace(self.running, features=(*self.running.features, reference))

    def _group(self, prefix: str, domain: str, frames: Frames, cameras: list[str] | None) -> None:
        """Add the stages that adapt to the frames of one group of cameras; `None` stands for all frames."""
        running, source = self.running, self.source_train
        if self.plan.budget is not None or cameras:
            sample = self._sample(f"{prefix}/sample", frames.features, cameras, self.plan.budget or _NO_BUDGET)
            frames = Frames([sample / "frames.json"], None, sample)
        target, frame_interval = frames.target, frames.frame_interval
        teacher = self.adaptation(f"{prefix}/teacher-adapt", self.plan.teacher.adapt, target, frame_interval)
        labels = [self.relabel(f"{prefix}/relabel", teacher, target, frame_interval)]
        published = self.root / prefix / "published"
        after = replace(running, model=published / MODEL, package=published / "package")
        if self.plan.replay is not None:
            buffer = self._replay(f"{prefix}/replay", labels[0], frames.features, domain)
            labels = [buffer / NEW, *([buffer / PAST] if running.buffer and self.plan.replay.select else [])]
            after = replace(after, buffer=buffer)
        configs = self.plan.student.retrain
        candidate = self.fit(f"{prefix}/student-retrain", configs, running.model, source=source, pseudo=labels)
        models = {"teacher-adapted": teacher, "student-old": running.model, "student-new": candidate}
        metrics = self.evaluate(f"{prefix}/evaluate", models, self.tests)
        if self.plan.gate is None:
            name = domain if domain in self.plan.tests else VALIDATION
            self.publish(f"{prefix}/published", candidate, running.model, metrics, self.tests, name)
        else:
            self._decide(prefix, domain, candidate, self.plan.gate)
        self.running = after

    def _decide(self, prefix: str, domain: str, candidate: Path, gate: Gate) -> None:
        """Add the stages that export the candidate, and publish it or keep the running student."""
        # The gate judges the loss of INT8. Otherwise a candidate that loses too much would stop the plan for good.
        allowed = ["--max-loss=1"] if gate.precision == "int8" else []
        package = self._export(f"{prefix}/export", candidate, gate, allowed)
        decision = self._gate(prefix, domain, package, gate) / "decision.json"
        inputs = [decision, candidate, self.running.model, package, self.running.package]
        names = ("decision", "candidate", "running", "candidate_package", "running_package")
        arguments = [f"{option(name)}={path}" for name, path in zip(names, inputs, strict=True)]
        arguments += [f"--registry={gate.registry}"] if gate.registry else []
        inputs, arguments = _with_key(inputs, arguments, trusted=gate.trusted, key=gate.key if gate.registry else None)
        self.stage(f"{prefix}/published", "apply-decision", inputs, arguments, seeded=False)

    def _gate(self, prefix: str, domain: str, package: Path, gate: Gate) -> Path:
        buffer = self.running.buffer
        entries = [] if buffer is None or not (buffer / BUFFER).is_file() else read_buffer(buffer)
        sets: dict[str, list[tuple[str, Path]]] = {
            "source": [(f"source-{number}", path) for number, path in enumerate(self.source_val, 1)],
            # Rounds of one domain form one set, because a few frames each decide nothing.
            "replay": [(entry.domain, entry.directory / "held.json") for entry in entries if entry.held],
            "canary": [(f"canary-{number}", path) for number, path in enumerate(self.locate(gate.canary), 1)],
        }
        arguments = [f"--candidate={package}", f"--running={self.running.package}", *flags(gate, kind=GateLimits)]
        for role, files in sets.items():
            arguments += [f"--{role}", *(f"{name}={path}" for name, path in files)] if files else []
        inputs = [package, self.running.package, *(path for files in sets.values() for _, path in files)]
        if self.plan.replay is not None and self.plan.replay.hold_out > 0:
            name = free_name(domain, {entry.name for entry in entries})
            inputs.append(self.root / prefix / "replay" / name / "held.json")
            arguments.append(f"--labels={inputs[-1]}")
        return self.stage(f"{prefix}/gate", "gate", *_with_key(inputs, arguments, trusted=gate.trusted))

    def _fetch(self, name: str, each: Round) -> Path:
        arguments = [f"--frames={each.frames}"]
        arguments += [] if each.frame_interval is None else [f"--frame-interval={each.frame_interval}"]
        # The rounds of a plan name their own frames; only the files of a watched folder must not be fetched twice.
        after = list(self.fetched) if self.plan.watch is not None else []
        arguments += ["--after", *map(str, after)] if after else []
        arguments += [f"--until={until}"] if (until := incoming(self.root).get(each.name)) else []
        return self.stage(name, "fetch", after, arguments, seeded=False)

    def _features(self, name: str, frames: Sequence[Path], frame_interval: float | None = None) -> None:
        arguments = [f"--weights={self.old_teacher}", "--frames", *map(str, frames)]
        arguments += [] if frame_interval is None else [f"--frame-interval={frame_interval}"]
        self.stage(name, "features", [self.old_teacher, *frames], arguments, seeded=False)

    def _drift(self, name: str, drift: Drift, features: Path) -> Path:
        references = {"source": self.root / "features-source", **dict(self.running.features)}
        arguments = ["--reference", *(f"{key}={path}" for key, path in references.items()), "--frames", str(features)]
        inputs = [*references.values(), features]
        return self.stage(name, "drift", inputs, [*arguments, *flags(drift, kind=DriftSettings)])

    def _sample(self, name: str, features: Path, cameras: list[str] | None, budget: int) -> Path:
        arguments = ["--features", str(features), f"--budget={budget}"]
        arguments += ["--cameras", *cameras] if cameras else []
        return self.stage(name, "sample", [features], arguments, seeded=False)

    def _replay(self, name: str, labels: Path, features: Path, domain: str) -> Path:
        buffer = [self.running.buffer] if self.running.buffer else []
        arguments = [f"--labels={labels}", f"--features={features}", f"--name={domain}", *flags(self.plan.replay)]
        arguments += [f"--buffer={path}" for path in buffer]
        return self.stage(name, "replay", [labels, features, *buffer], arguments)

    def _export(self, name: str, weights: Path, gate: Gate, more: Sequence[str] = ()) -> Path:
        arguments = [f"--weights={weights}", f"--precision={gate.precision}", *more]
        inputs = [weights]
        if gate.precision == "int8":
            arguments += ["--calibration", *map(str, self.source_train), "--labelled", *map(str, self.source_val)]
            inputs += [*self.source_train, *self.source_val]
        return self.stage(name, "export", *_with_key(inputs, arguments, key=gate.key))


def _with_key(
    inputs: Sequence[Path], arguments: Sequence[str], **files: str | None
) -> tuple[list[Path], list[str]]:  # fmt: skip
    """Return inputs and arguments of a stage with the option of each key file that is given."""
    given = {name: file for name, file in files.items() if file is not None}
    return [*inputs, *map(Path, given.values())], [*arguments, *(f"--{name}={file}" for name, file in given.items())]


def _adapted_groups(directory: Path, drift: Drift) -> Sequence[list[str] | None]:
    """Return the groups of cameras of the adaptations of a round; `None` stands for all frames.

    Before the drift result exists, there is one adaptation to all frames.
    """
    if not (directory / "manifest.json").is_file():
        return [None]
    result = read_drift(directory)
    groups = [list(group) for group in result.groups]
    if drift.when == "always":
        healthy = [camera for camera, entry in result.cameras.items() if entry.verdict != FAULT]
        rest = [camera for camera in healthy if not any(camera in group for group in groups)]
        groups = [healthy] if len(groups) < 2 else [*groups, *([rest] if rest else [])]
    if len(groups) == 1 and set(groups[0]) == set(result.cameras):
        return [None]
    return [group for group in groups if group]
