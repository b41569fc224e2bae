"""Stages of a plan of rounds. The stages of a round depend on the results of its drift test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cahqp.cycle.replay_buffer import BUFFER, NEW, PAST, free_name
from cahqp.cycle.rounds.incoming import incoming
from cahqp.cycle.rounds.plan import Drift, Round, RoundsPlan
from cahqp.cycle.stages import ADAPT, LABELS, MODEL, VALIDATION, PlanStages
from cahqp.drift.options import FAULT, DriftSettings
from cahqp.files import read_json
from cahqp.gate.options import GateLimits
from cahqp.runs.options import flags
from cahqp.runs.state import Stage

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
    """Stages of a plan of rounds.

    Args:
        plan: A valid plan.
        root: Directory of the cycle.
    """

    plan: RoundsPlan

    def __init__(self, plan: RoundsPlan, root: Path) -> None:
        super().__init__(plan, root)
        self.tests = list(zip(plan.tests, self.locate(list(plan.tests.values())), strict=True))

    @property
    def rounds(self) -> list[Round]:
        """The rounds of the plan, or those that a watched folder has made so far."""
        watch = self.plan.watch
        if watch is None:
            return self.plan.rounds
        names = incoming(self.root)
        return [Round(name=name, frames=watch.frames, frame_interval=watch.frame_interval) for name in names]

    def all(self) -> list[Stage]:
        """Return the stages that are determined so far. A round without a drift result counts as drifted."""
        stages = [*self.scenes(), *self.source_training()]
        if self.plan.drift is not None:
            stages.append(self._features("features-source", self.source_train))
        running = Running(self.old_student, self.root / "export-start")
        if self.plan.gate is not None:
            stages.append(self._export("export-start", running.model))
        fetched: list[Path] = []
        for number, each in enumerate(self.rounds, 1):
            added, running = self._round(f"round-{number:02d}", each, running, fetched)
            stages += added
        return stages

    def _round(
        self, prefix: str, each: Round, running: Running, fetched: list[Path]
    ) -> tuple[list[Stage], Running]:  # fmt: skip
        """Return a round's stages and the student after it. The directory of a fetch is added to `fetched`."""
        stages: list[Stage] = []
        frames = Frames(self.locate(each.train), each.frame_interval, self.root / prefix / "features")
        if each.frames is not None:
            fetch = self._fetch(f"{prefix}/fetch", each, fetched)
            stages.append(fetch)
            fetched.append(fetch.output)
            frames = replace(frames, target=[fetch.output / "frames.json"], frame_interval=None)
        if self.plan.drift or self.plan.replay or self.plan.budget:
            stages.append(self._features(f"{prefix}/features", frames.target, frames.frame_interval))
        groups: Sequence[list[str] | None] = [None]
        if self.plan.drift is not None:
            test = self._drift(f"{prefix}/drift", self.plan.drift, frames.features, running)
            stages.append(test)
            groups = _adapted_groups(test.output, self.plan.drift)
            if groups == [] and self.plan.drift.when == "drifted":
                return stages, running
        places = [f"{prefix}/group-{n}" if len(groups) > 1 else prefix for n in range(1, len(groups) + 1)]
        for place, cameras in zip(places, groups, strict=True):
            added, running = self._group(place, each.name, frames, cameras, running)
            stages += added
        if self.plan.drift is None:
            return stages, running
        # Only domains that the running student has learnt become references. Otherwise a night whose candidate was
        # rejected would count as steady ever after, and gradual dusk would never count as drift.
        for place, cameras in zip(places, groups, strict=True):
            if not self._published(place):
                continue
            own = frames.features
            if cameras:
                stages.append(self._sample(f"{place}/known", frames.features, cameras, _NO_BUDGET))
                own = stages[-1].output
            reference = (f"{each.name}-{place.replace('/', '-')}", own)
            running = replace(running, features=(*running.features, reference))
        return stages, running

    def _published(self, place: str) -> bool:
        """Return whether the student of an adaptation was published; true before the decision."""
        decision = self.root / place / "published" / "decision.json"
        return not decision.is_file() or bool(read_json(decision)["published"])

    def _group(
        self, prefix: str, domain: str, frames: Frames, cameras: list[str] | None, running: Running
    ) -> tuple[list[Stage], Running]:
        """Return the stages that adapt to the frames of one group of cameras, and the student after them."""
        stages: list[Stage] = []
        if self.plan.budget is not None or cameras:
            sample = self._sample(f"{prefix}/sample", frames.features, cameras, self.plan.budget or _NO_BUDGET)
            stages.append(sample)
            frames = Frames([sample.output / "frames.json"], None, sample.output)
        stages += self.adaptation(
            f"{prefix}/{ADAPT}", self.plan.teacher.adapt, frames.target, frames.frame_interval
        )  # fmt: skip
        teacher = stages[-1].output / MODEL
        stages.append(self.relabel(f"{prefix}/relabel", teacher, frames.target, frames.frame_interval))
        labels = [stages[-1].output / LABELS]
        published = self.root / prefix / "published"
        after = replace(running, model=published / MODEL, package=published / "package")
        if self.plan.replay is not None:
            replay = self._replay(f"{prefix}/replay", labels[0], frames.features, domain, running)
            stages.append(replay)
            labels = [replay.output / NEW]
            labels += [replay.output / PAST] if running.buffer and self.plan.replay.select else []
            after = replace(after, buffer=replay.output)
        retrain = self.fit(
            f"{prefix}/student-retrain",
            self.plan.student.retrain,
            running.model,
            source=self.source_train,
            pseudo=labels,
        )
        candidate = retrain.output / MODEL
        models = {"teacher-adapted": teacher, "student-old": running.model, "student-new": candidate}
        stages += [retrain, self.evaluate(f"{prefix}/evaluate", models, self.tests)]
        return [*stages, *self._decision(prefix, domain, candidate, running)], after

    def _decision(self, prefix: str, domain: str, candidate: Path, running: Running) -> list[Stage]:
        """Return the stages that publish the candidate or keep the running student."""
        if self.plan.gate is None:
            metrics = self.root / prefix / "evaluate" / "metrics.json"
            frames = domain if domain in dict(self.tests) else VALIDATION
            return [self.publish(f"{prefix}/published", candidate, running.model, metrics, frames)]
        # The gate judges the loss of INT8. Otherwise a candidate that loses too much would stop the plan for good.
        allowed = ["--max_loss=1"] if self.plan.gate.precision == "int8" else []
        export = self._export(f"{prefix}/export", candidate, allowed)
        gate = self._gate(prefix, domain, running)
        inputs = [gate.output / "decision.json", candidate, running.model, export.output, running.package]
        names = ("decision", "candidate", "running", "candidate_package", "running_package")
        arguments = [f"--{name}={path}" for name, path in zip(names, inputs, strict=True)]
        arguments += [f"--registry={self.plan.gate.registry}"] if self.plan.gate.registry else []
        return [export, gate, self.stage(f"{prefix}/published", "apply-decision", inputs, arguments, seeded=False)]

    def _gate(self, prefix: str, domain: str, running: Running) -> Stage:
        assert self.plan.gate is not None
        package = self.root / prefix / "export"
        entries = _entries(running.buffer)
        sets: dict[str, list[tuple[str, Path]]] = {
            "source": [(f"source-{number}", path) for number, path in enumerate(self.source_val, 1)],
            # Rounds of one domain form one set, because a few frames each decide nothing.
            "replay": [(e["domain"], running.buffer / e["name"] / "held.json") for e in entries if e["held"]]
            if running.buffer
            else [],
            "canary": [(f"canary-{n}", path) for n, path in enumerate(self.locate(self.plan.gate.canary), 1)],
        }
        arguments = [f"--candidate={package}", f"--running={running.package}"]
        arguments += flags(self.plan.gate, kind=GateLimits)
        for role, files in sets.items():
            arguments += [f"--{role}", *(f"{name}={path}" for name, path in files)] if files else []
        inputs = [package, running.package, *(path for files in sets.values() for _, path in files)]
        if self.plan.replay is not None and self.plan.replay.hold_out > 0:
            name = free_name(domain, {entry["name"] for entry in entries})
            inputs.append(self.root / prefix / "replay" / name / "held.json")
            arguments.append(f"--labels={inputs[-1]}")
        return self.stage(f"{prefix}/gate", "gate", inputs, arguments)

    def _fetch(self, name: str, each: Round, fetched: Sequence[Path]) -> Stage:
        arguments = [f"--frames={each.frames}"]
        arguments += [] if each.frame_interval is None else [f"--frame_interval={each.frame_interval}"]
        # The rounds of a plan name their own frames; only the files of a watched folder must not be fetched twice.
        after = list(fetched) if self.plan.watch is not None else []
        arguments += ["--after", *map(str, after)] if after else []
        arguments += [f"--until={until}"] if (until := incoming(self.root).get(each.name)) else []
        return self.stage(name, "fetch", after, arguments, seeded=False)

    def _features(self, name: str, frames: Sequence[Path], frame_interval: float | None = None) -> Stage:
        arguments = [f"--weights={self.old_teacher}", "--frames", *map(str, frames)]
        arguments += [] if frame_interval is None else [f"--frame_interval={frame_interval}"]
        return self.stage(name, "features", [self.old_teacher, *frames], arguments, seeded=False)

    def _drift(self, name: str, drift: Drift, features: Path, running: Running) -> Stage:
        references = {"source": self.root / "features-source", **dict(running.features)}
        arguments = ["--reference", *(f"{key}={path}" for key, path in references.items()), "--frames", str(features)]
        inputs = [*references.values(), features]
        return self.stage(name, "drift", inputs, [*arguments, *flags(drift, kind=DriftSettings)])

    def _sample(self, name: str, features: Path, cameras: list[str] | None, budget: int) -> Stage:
        arguments = ["--features", str(features), f"--budget={budget}"]
        arguments += ["--cameras", *cameras] if cameras else []
        return self.stage(name, "sample", [features], arguments, seeded=False)

    def _replay(self, name: str, labels: Path, features: Path, domain: str, running: Running) -> Stage:
        arguments = [f"--labels={labels}", f"--features={features}", f"--name={domain}", *flags(self.plan.replay)]
        arguments += [f"--buffer={running.buffer}"] if running.buffer else []
        inputs = [labels, features, *([running.buffer] if running.buffer else [])]
        return self.stage(name, "replay", inputs, arguments)

    def _export(self, name: str, weights: Path, more: Sequence[str] = ()) -> Stage:
        assert self.plan.gate is not None
        arguments = [f"--weights={weights}", f"--precision={self.plan.gate.precision}", *more]
        inputs = [weights]
        if self.plan.gate.precision == "int8":
            arguments += ["--calibration", *map(str, self.source_train), "--labelled", *map(str, self.source_val)]
            inputs += [*self.source_train, *self.source_val]
        return self.stage(name, "export", inputs, arguments)


def _adapted_groups(directory: Path, drift: Drift) -> Sequence[list[str] | None]:
    """Return the groups of cameras of the adaptations of a round; `None` stands for all frames.

    Before the drift result exists, there is one adaptation to all frames.
    """
    if not (directory / "manifest.json").is_file():
        return [None]
    result: dict[str, Any] = read_json(directory / "drift.json")
    groups = [list(group) for group in result["groups"]]
    if drift.when == "always":
        healthy = [camera for camera, entry in result["cameras"].items() if entry["verdict"] != FAULT]
        rest = [camera for camera in healthy if not any(camera in group for group in groups)]
        groups = [healthy] if len(groups) < 2 else [*groups, *([rest] if rest else [])]
    if len(groups) == 1 and set(groups[0]) == set(result["cameras"]):
        return [None]
    return [group for group in groups if group]


def _entries(buffer: Path | None) -> list[dict[str, Any]]:
    """Return the domains listed in a replay buffer, empty before it exists."""
    if buffer is None or not (buffer / BUFFER).is_file():
        return []
    entries: list[dict[str, Any]] = read_json(buffer / BUFFER)["domains"]
    return entries
