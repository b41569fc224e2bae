"""From a plan of rounds to the stages that are known by now: what a round does depends on what it found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cahqp.cycle.plan import Target
from cahqp.cycle.replay_buffer import BUFFER, NEW, PAST
from cahqp.cycle.rounds.incoming import incoming
from cahqp.cycle.rounds.plan import Drift, Round, RoundsPlan
from cahqp.cycle.stages import ADAPT, LABELS, MODEL, VALIDATION, Stages
from cahqp.drift.command import FAULT
from cahqp.files import read_json
from cahqp.runs.state import Stage

_ALL = 1_000_000


@dataclass(frozen=True)
class Running:
    """The student that runs when a round begins.

    Attributes:
        model: Its model file.
        package: Its package; what is there means something with a gate only.
        buffer: The buffer of past domains, `None` before the first.
        features: Features of past rounds, by the name of the round.
    """

    model: Path
    package: Path
    buffer: Path | None = None
    features: tuple[tuple[str, Path], ...] = ()


class RoundStages:
    """The stages of a plan of rounds, over one directory.

    Args:
        plan: A plan that was checked.
        root: The cycle's directory.
    """

    def __init__(self, plan: RoundsPlan, root: Path) -> None:
        self.plan, self.root = plan, root
        # Scenes, source trainings and the form of every stage are those of a single cycle.
        self.single = Stages(plan.single(Target([])), root)
        self.tests = {name: self.single.data(entry) for name, entry in plan.tests.items()}

    @property
    def rounds(self) -> list[Round]:
        """The rounds of the plan, or those that a watched folder has made."""
        if self.plan.watch is None:
            return self.plan.rounds
        watch = self.plan.watch
        return [Round(name, frames=watch.frames, frame_interval=watch.frame_interval) for name in incoming(self.root)]

    def all(self) -> list[Stage]:
        """Return the stages that are known by now; of a round whose drift is not told yet, as if it had drifted."""
        stages = self.single.preparation()
        if self.plan.drift is not None:
            stages.append(self._features("features-source", self.single.source_train))
        running = Running(self.single.old_student, self.root / "export-start")
        if self.plan.gate is not None:
            stages.append(self._export("export-start", running.model))
        fetched: list[Path] = []
        for number, one in enumerate(self.rounds, 1):
            found, running = self._round(f"round-{number:02d}", one, running, fetched)
            stages += found
        return stages

    def _round(
        self, prefix: str, one: Round, running: Running, fetched: list[Path]
    ) -> tuple[list[Stage], Running]:  # fmt: skip
        """Return a round's stages, and what runs after it. Directories of fetches are added to `fetched`."""
        stages: list[Stage] = []
        target = [self.single.data(entry) for entry in one.train]
        frame_interval = one.frame_interval
        if one.frames is not None:
            stages.append(self._fetch(f"{prefix}/fetch", one, fetched))
            fetched.append(stages[-1].output)
            target, frame_interval = [stages[-1].output / "frames.json"], None
        watched = self.plan.drift or self.plan.replay or self.plan.budget
        features = self.root / prefix / "features"
        if watched:
            stages.append(self._features(f"{prefix}/features", target, frame_interval))
        groups: list[list[str]] | None = None
        if self.plan.drift is not None:
            stages.append(self._drift(f"{prefix}/drift", self.plan.drift, features, running))
            groups = drifted_groups(stages[-1].output)
            if self.plan.drift.when == "drifted" and groups == []:
                return stages, running
        several = self._separate(groups, prefix)
        places = [f"{prefix}/group-{n}" if len(several) > 1 else prefix for n in range(1, len(several) + 1)]
        for place, cameras in zip(places, several, strict=True):
            found, running = self._turn(place, one.name, target, frame_interval, features, cameras, running)
            stages += found
        # Only what a running student has learnt is known; else night that was refused would be steady ever after, and
        # dusk would creep up on a camera round by round.
        learnt = [turn for turn in zip(places, several, strict=True) if self._published(turn[0])]
        for place, cameras in learnt if self.plan.drift is not None else []:
            own = features
            if cameras:
                stages.append(self._sample(f"{place}/known", features, cameras, _ALL))
                own = stages[-1].output
            running = replace(running, features=(*running.features, (f"{one.name}-{place.replace('/', '-')}", own)))
        return stages, running

    def _published(self, place: str) -> bool:
        """Say whether a turn's student went out; yes while that is not decided."""
        decision = self.root / place / "published" / "decision.json"
        return not decision.is_file() or bool(read_json(decision)["published"])

    def _separate(self, groups: list[list[str]] | None, prefix: str) -> Sequence[list[str] | None]:
        """Return the cameras of each adaptation of a round; `None` stands for all frames that came."""
        if groups is None or self.plan.drift is None:
            return [None]
        came = read_json(self.root / prefix / "drift" / "drift.json")["cameras"]
        parts = [list(group) for group in groups]
        if self.plan.drift.when == "always":
            healthy = [camera for camera, said in came.items() if said["verdict"] != FAULT]
            rest = [camera for camera in healthy if not any(camera in group for group in parts)]
            parts = [healthy] if len(parts) < 2 else [*parts, *([rest] if rest else [])]
        if len(parts) == 1 and set(parts[0]) == set(came):
            return [None]
        return [part for part in parts if part]

    def _turn(
        self,
        prefix: str,
        name: str,
        target: list[Path],
        frame_interval: float | None,
        features: Path,
        cameras: list[str] | None,
        running: Running,
    ) -> tuple[list[Stage], Running]:
        """Return the stages that adapt to the frames of one group of cameras, and what runs after them."""
        stages: list[Stage] = []
        if self.plan.budget is not None or cameras:
            stages.append(self._sample(f"{prefix}/sample", features, cameras, self.plan.budget or _ALL))
            features, frame_interval = stages[-1].output, None
            target = [features / "frames.json"]
        source = self.single.source_train
        stages += self.single.adaptation(f"{prefix}/{ADAPT}", self.plan.teacher.adapt, target, frame_interval)
        teacher = stages[-1].output / MODEL
        relabel = self.single.relabel(f"{prefix}/relabel", teacher, target, frame_interval)
        stages.append(relabel)
        labels = [relabel.output / LABELS]
        if self.plan.replay is not None:
            stages.append(self._remember(f"{prefix}/replay", labels[0], features, name, running))
            buffer = stages[-1].output
            labels = [buffer / NEW, *([buffer / PAST] if running.buffer and self.plan.replay.select else [])]
        retrain = self.single.fit(
            f"{prefix}/student-retrain", self.plan.student.retrain, running.model, None, source=source, pseudo=labels
        )
        candidate = retrain.output / MODEL
        stages += [retrain, self._evaluate(f"{prefix}/evaluate", teacher, running.model, candidate)]
        stages += self._judged(prefix, name, candidate, running)
        published = self.root / prefix / "published"
        new = replace(running, model=published / MODEL, package=published / "package")
        return stages, new if self.plan.replay is None else replace(new, buffer=buffer)

    def _judged(self, prefix: str, name: str, candidate: Path, running: Running) -> list[Stage]:
        """Return the stages that publish the candidate or keep the running student."""
        metrics = self.root / prefix / "evaluate" / "metrics.json"
        if self.plan.gate is None:
            frames = name if name in self.tests else VALIDATION
            given = [
                f"--candidate={candidate}",
                f"--running={running.model}",
                f"--metrics={metrics}",
                f"--frames={frames}",
            ]
            inputs = [candidate, running.model, metrics]
            return [self.single.stage(f"{prefix}/published", "publish", inputs, given, seeded=False)]
        # What INT8 loses is the gate's to judge, else a candidate that loses too much would stop the plan for good.
        allowed = ["--max_loss=1"] if self.plan.gate.precision == "int8" else []
        export = self._export(f"{prefix}/export", candidate, allowed)
        gate = self._gate(f"{prefix}/gate", prefix, name, running)
        inputs = [gate.output / "decision.json", candidate, running.model, export.output, running.package]
        flags = ("decision", "candidate", "running", "candidate_package", "running_package")
        given = [f"--{flag}={path}" for flag, path in zip(flags, inputs, strict=True)]
        given += [f"--registry={self.plan.gate.registry}"] if self.plan.gate.registry else []
        return [export, gate, self.single.stage(f"{prefix}/published", "apply-decision", inputs, given, seeded=False)]

    def _gate(self, name: str, prefix: str, domain: str, running: Running) -> Stage:
        gate = self.plan.gate
        assert gate is not None
        package = self.root / prefix / "export"
        sets: dict[str, list[tuple[str, Path]]] = {
            "source": [(f"source-{number}", path) for number, path in enumerate(self.single.source_val, 1)],
            # Rounds of one domain are one set: a few frames each would judge nothing.
            "replay": [(d, running.buffer / n / "held.json") for n, d in _held(running.buffer)]
            if running.buffer
            else [],
            "canary": [(f"canary-{number}", self.single.data(e)) for number, e in enumerate(gate.canary, 1)],
        }
        given = [f"--candidate={package}", f"--running={running.package}", f"--max_ap50_drop={gate.max_ap50_drop}"]
        given.append(f"--max_slowdown={gate.max_slowdown}")
        for role, found in sets.items():
            given += [f"--{role}", *(f"{said}={path}" for said, path in found)] if found else []
        inputs = [package, running.package, *(path for found in sets.values() for _, path in found)]
        if self.plan.replay is not None and self.plan.replay.hold_out > 0:
            own = self.root / prefix / "replay" / _free(domain, running.buffer) / "held.json"
            given.append(f"--labels={own}")
            inputs.append(own)
        return self.single.stage(name, "gate", inputs, given)

    def _fetch(self, name: str, one: Round, fetched: Sequence[Path]) -> Stage:
        given = [f"--frames={one.frames}"] + (
            [] if one.frame_interval is None else [f"--frame_interval={one.frame_interval}"]
        )
        # A plan's own rounds each name what they mean; only a watched folder must not be taken twice.
        after = list(fetched) if self.plan.watch is not None else []
        given += ["--after", *map(str, after)] if after else []
        given += [f"--until={until}"] if (until := incoming(self.root).get(one.name)) else []
        return self.single.stage(name, "fetch", after, given, seeded=False)

    def _features(self, name: str, frames: Sequence[Path], frame_interval: float | None = None) -> Stage:
        weights = self.single.old_teacher
        given = [f"--weights={weights}", "--frames", *map(str, frames)]
        given += [] if frame_interval is None else [f"--frame_interval={frame_interval}"]
        return self.single.stage(name, "features", [weights, *frames], given, seeded=False)

    def _drift(self, name: str, drift: Drift, features: Path, running: Running) -> Stage:
        known = {"source": self.root / "features-source", **dict(running.features)}
        settings = {key: value for key, value in vars(drift).items() if key != "when"}
        given = ["--reference", *(f"{key}={path}" for key, path in known.items()), "--frames", str(features)]
        given += [f"--{key}={value}" for key, value in settings.items()]
        return self.single.stage(name, "drift", [*known.values(), features], given)

    def _sample(self, name: str, features: Path, cameras: list[str] | None, budget: int) -> Stage:
        given = ["--features", str(features), f"--budget={budget}"]
        given += ["--cameras", *cameras] if cameras else []
        return self.single.stage(name, "sample", [features], given, seeded=False)

    def _remember(self, name: str, labels: Path, features: Path, domain: str, running: Running) -> Stage:
        replay = self.plan.replay
        assert replay is not None
        given = [f"--labels={labels}", f"--features={features}", f"--name={domain}"]
        given += [f"--{key}={value}" for key, value in vars(replay).items()]
        given += [f"--buffer={running.buffer}"] if running.buffer else []
        inputs = [labels, features, *([running.buffer] if running.buffer else [])]
        return self.single.stage(name, "replay", inputs, given)

    def _evaluate(self, name: str, teacher: Path, running: Path, candidate: Path) -> Stage:
        models = {"teacher-adapted": teacher, "student-old": running, "student-new": candidate}
        given = ["--weights", *(f"{key}={path}" for key, path in models.items()), "--frames"]
        given += [f"{key}={path}" for key, path in self.tests.items()]
        given += [f"{VALIDATION}={path}" for path in self.single.source_val]
        inputs = [*models.values(), *self.tests.values(), *self.single.source_val]
        return self.single.stage(name, "evaluate", inputs, given)

    def _export(self, name: str, weights: Path, more: Sequence[str] = ()) -> Stage:
        gate = self.plan.gate
        assert gate is not None
        given = [f"--weights={weights}", f"--precision={gate.precision}", *more]
        inputs = [weights]
        if gate.precision == "int8":
            calibration = self.single.source_train
            given += ["--calibration", *map(str, calibration), "--labelled", *map(str, self.single.source_val)]
            inputs += [*calibration, *self.single.source_val]
        return self.single.stage(name, "export", inputs, given)


def drifted_groups(directory: Path) -> list[list[str]] | None:
    """Return the groups of drifted cameras that a drift stage has found; `None` while it is not done."""
    if not (directory / "manifest.json").is_file():
        return None
    found: dict[str, Any] = read_json(directory / "drift.json")
    return [list(group) for group in found["groups"]]


def _entries(buffer: Path | None) -> list[dict[str, Any]]:
    if buffer is None or not (buffer / BUFFER).is_file():
        return []
    listed: list[dict[str, Any]] = json.loads((buffer / BUFFER).read_text(encoding="utf-8"))["domains"]
    return listed


def _held(buffer: Path | None) -> list[tuple[str, str]]:
    """Return directory and domain of a buffer's parts that have frames held out; none while it is not made."""
    return [(entry["name"], entry["domain"]) for entry in _entries(buffer) if entry["held"]]


def _free(name: str, buffer: Path | None) -> str:
    """Return the name that `cahqp replay` gives a domain beside those of a buffer."""
    taken = {entry["name"] for entry in _entries(buffer)}
    number, free = 2, name
    while free in taken:
        free, number = f"{name}.{number}", number + 1
    return free
