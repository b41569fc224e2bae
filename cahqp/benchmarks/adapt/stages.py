"""From a benchmark's plan to the stages that carry it out; what two plans have in common is one stage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from cahqp.benchmarks.adapt.cost import Estimate
from cahqp.benchmarks.adapt.plan import SCENES, Arm, Plan
from cahqp.coco.reader import read_coco_frames
from cahqp.cycle.stages import LABELS, MODEL
from cahqp.runs.directory import content_hash
from cahqp.runs.state import Stage

STAGES = "stages"
# What an arm comes to is measured, good or bad; one that is stopped would stop the benchmark. A loss that is not finite
# still does.
WITHOUT_ALARMS = dict.fromkeys(
    ("alarms.fewest", "alarms.most", "alarms.class_drift", "alarms.discriminator_patience"), None
)
# As with the alarms, a teacher that finds nothing is measured.
_WITHOUT_LABELS = {"data.empty_pseudo": True}
TARGET_TEST, SOURCE_TEST = "target-test", "source-test"


@dataclass(frozen=True)
class Run:
    """One arm of one seed.

    Attributes:
        arm: Its name.
        seed: Its seed.
        training: Names of the stages that made the teacher; none where it is the source's.
        measured: Directory of its figures.
        images: Frames that its training looked at, each as often as it was.
    """

    arm: str
    seed: int
    training: tuple[str, ...]
    measured: Path
    images: int


class Bench:
    """The stages of any number of plans over one directory.

    A stage's name ends with a hash of its recipe: what it is told, what its configs say and what it reads, down to the
    scenes. So arms that two plans have in common are made once, and a changed config never overwrites a finished arm.

    Args:
        root: Holds all stages.

    Attributes:
        stages: In an order that meets each one's needs, by name.
        seconds: Estimated time of each stage, by name.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stages: dict[str, Stage] = {}
        self.seconds: dict[str, float] = {}
        self._recipes: dict[Path, str] = {}

    def add(self, plan: Plan) -> list[Run]:
        """Add a plan's stages and return its runs, seed by seed."""
        return [run for seed in plan.seeds for run in _Seed(self, plan, seed).runs()]

    def needed(self, runs: Sequence[Run]) -> list[Stage]:
        """Return the stages that runs depend on, in order."""
        wanted = {run.measured for run in runs}
        for stage in reversed(self.stages.values()):  # a stage is added after those that it reads
            if stage.output in wanted:
                wanted |= {folder for path in stage.inputs for folder in path.parents}
        return [stage for stage in self.stages.values() if stage.output in wanted]

    def stage(
        self, kind: str, command: Sequence[str], given: Sequence[str], inputs: Sequence[Path], seed: int, seconds: float
    ) -> Stage:
        """Add a stage, unless the same one is there already, and return it.

        Args:
            kind: First part of its name.
            command: Words after `cahqp`.
            given: Its options.
            inputs: Files it reads; those of other stages are known by their recipes.
            seed: Its seed.
            seconds: Estimated time.
        """
        told = list(given)
        for number, path in enumerate(inputs):
            told = [text.replace(str(path), f"{{{number}}}") for text in told]
        recipe = json.dumps([list(command), told, seed, [self._recipe(path) for path in inputs]])
        digest = hashlib.sha256(recipe.encode()).hexdigest()
        name = f"{STAGES}/{kind}-seed{seed}-{digest[:10]}"
        if name not in self.stages:
            output = self.root / name
            arguments = (*command, *given, f"--output={output}", f"--seed={seed}")
            self.stages[name] = Stage(name, arguments, tuple(inputs), output)
            self.seconds[name] = seconds
            self._recipes[output] = digest
        return self.stages[name]

    def _recipe(self, path: Path) -> str:
        for folder in (path, *path.parents):
            if folder in self._recipes:
                return f"{self._recipes[folder]}/{path.relative_to(folder)}"
        return _content(path.absolute())


class _Seed:
    """The stages of one seed of a plan."""

    def __init__(self, bench: Bench, plan: Plan, seed: int) -> None:
        self.bench, self.plan, self.seed = bench, plan, seed
        self.estimate = Estimate(plan)
        self.source_train, self.source_val = self._data(plan.source.train), self._data(plan.source.val)
        self.target_train = self._data(plan.target.train)
        (self.target_test,), (self.source_test,) = self._data([plan.target.test]), self._data([plan.source.test])
        self.teacher = self._source_model("teacher")

    def runs(self) -> list[Run]:
        """Return one run for each arm."""
        return [self._run(name, arm) for name, arm in self.plan.chosen.items()]

    def _run(self, name: str, arm: Arm) -> Run:
        training = [] if arm.kind == "none" else self._trainings(arm)
        teacher = training[-1].output / MODEL if training else self.teacher
        models = {"teacher": teacher}
        if name in self.plan.students:
            running = self._source_model("student")
            models["student"] = self._student(arm, teacher, running)
            if arm.kind == "none":
                models["student-before"] = running
        measured = self._measure(models)
        made = tuple(stage.name for stage in training)
        return Run(name, self.seed, made, measured.output, self.estimate.images(arm))

    def _trainings(self, arm: Arm) -> list[Stage]:
        """Return what makes an arm's teacher: its training, and where the plan says so labels and refits on them."""
        stages, configs = [self._training(arm)], self.plan.teacher.self_training
        for _ in range(self.plan.self_training_rounds(arm)):
            teacher = stages[-1].output / MODEL
            stages.append(self._relabel(arm, teacher))
            frames = {"source": self.source_train, "pseudo": [stages[-1].output / LABELS], "val": self.source_val}
            seconds = self.estimate.labelled(configs)
            stages.append(self._fit("self_training", configs, teacher, frames, _WITHOUT_LABELS, seconds))
        return stages

    def _training(self, arm: Arm) -> Stage:
        plan, frames = self.plan, {"source": self.source_train, "val": self.source_val}
        oracle = arm.kind == "oracle"
        frames["pseudo" if oracle else "target"] = self.target_train
        configs = [*(plan.teacher.oracle if oracle else plan.teacher.then), *arm.configs]
        epochs = max(1, round(plan.epochs * arm.steps))
        length = {"trainer.max_epochs": epochs, "data.batches_per_epoch": plan.batches}
        seconds = self.estimate.adaptation(arm)
        told = {} if arm.ground_truth is None else {arm.ground_truth: [str(path) for path in self.target_train]}
        settings = length | WITHOUT_ALARMS | arm.set | told
        return self._fit("oracle" if oracle else "adapt", configs, self.teacher, frames, settings, seconds)

    def _student(self, arm: Arm, teacher: Path, running: Path) -> Path:
        labels = self.target_train
        if arm.kind != "oracle":  # whose student learns from the very labels that the oracle learnt from
            labels = [self._relabel(arm, teacher).output / LABELS]
        frames = {"source": self.source_train, "pseudo": labels, "val": self.source_val}
        configs = self.plan.student.then
        seconds = self.estimate.student(configs)
        return self._fit("student", configs, running, frames, _WITHOUT_LABELS, seconds).output / MODEL

    def _relabel(self, arm: Arm, teacher: Path) -> Stage:
        relabel = arm.relabel or self.plan.relabel
        given = [f"--weights={teacher}", "--frames", *map(str, self.target_train), *relabel.flags(), *self._broken()]
        inputs = [teacher, *self.target_train]
        return self.bench.stage("relabel", ["relabel"], given, inputs, self.seed, self.estimate.relabel())

    def _source_model(self, role: str) -> Path:
        model = self.plan.teacher if role == "teacher" else self.plan.student
        if model.weights is not None:
            return Path(model.weights)
        seconds = self.estimate.labelled(model.fit) if role == "teacher" else self.estimate.student(model.fit)
        frames = {"train": self.source_train, "val": self.source_val}
        return self._fit(f"{role}-source", model.fit, None, frames, model.set, seconds).output / MODEL

    def _measure(self, models: dict[str, Path]) -> Stage:
        given = ["--weights", *(f"{name}={path}" for name, path in models.items())]
        given += ["--frames", f"{TARGET_TEST}={self.target_test}", f"{SOURCE_TEST}={self.source_test}"]
        given += self._broken()
        inputs = [*models.values(), self.target_test, self.source_test]
        seconds = self.estimate.measure(len(models))
        return self.bench.stage("measure", ["benchmark", "measure"], given, inputs, self.seed, seconds)

    def _broken(self) -> list[str]:
        """Return the share of broken images that the plan puts up with, for commands beside `fit`."""
        share = self.plan.set.get("data.max_invalid_share")
        return [] if share is None else [f"--max_invalid_share={share}"]

    def _fit(
        self,
        kind: str,
        configs: Sequence[str],
        weights: Path | None,
        frames: dict[str, list[Path]],
        settings: dict[str, Any],
        seconds: float,
    ) -> Stage:
        given = [f"--config={config}" for config in configs]
        given += [] if weights is None else [f"--model.weights={weights}"]
        given += [f"--data.{role}={json.dumps([str(p) for p in paths])}" for role, paths in sorted(frames.items())]
        settings = self.plan.set | settings
        given += [f"--{name}={_value(value)}" for name, value in settings.items()]
        inputs = [Path(config) for config in configs] + ([] if weights is None else [weights])
        inputs += [path for _, paths in sorted(frames.items()) for path in paths]
        inputs += [Path(value) for value in settings.values() if isinstance(value, str) and Path(value).is_file()]
        return self.bench.stage(kind, ["fit"], given, inputs, self.seed, seconds)

    def _data(self, entries: Sequence[str]) -> list[Path]:
        return [self._scenes(e.removeprefix(SCENES)) if e.startswith(SCENES) else Path(e) for e in entries]

    def _scenes(self, name: str) -> Path:
        told = self.plan.scenes[name]
        given = [f"--{key}={_value(value)}" for key, value in sorted(told.items()) if key != "seed"]
        seed = int(told.get("seed", self.seed))
        stage = self.bench.stage("scenes", ["scenes"], given, [], seed, self.estimate.scenes(name))
        return stage.output / "annotations.json"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@lru_cache(maxsize=1024)
def _content(path: Path) -> str:
    if path.suffix in (".yaml", ".yml"):  # what a config says; a comment changes nothing
        return json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), sort_keys=True, default=str)
    told = content_hash(path)
    if path.suffix == ".json":  # frames; other pictures below the same names are another data set
        told += json.dumps([file.stat().st_size for file in read_coco_frames(path).files if file.is_file()])
    return told
