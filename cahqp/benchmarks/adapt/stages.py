"""Stages of a benchmark: plans are expanded into commands, and stages that plans have in common are merged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from cahqp.benchmarks.adapt.estimate import Estimate
from cahqp.benchmarks.adapt.plan import Arm, BenchmarkPlan, BenchmarkStudent, BenchmarkTeacher, FitOptions
from cahqp.coco.reader import read_coco_frames
from cahqp.cycle.plan import SCENES
from cahqp.cycle.stages import LABELS, MODEL
from cahqp.errors import option
from cahqp.labels.options import LabelOptions
from cahqp.runs.directory import content_hash
from cahqp.runs.options import flags
from cahqp.runs.state import Stage

STAGES = "stages"
# A benchmark measures bad arms too: a stopped stage would stop all others. A loss that is not finite still does.
WITHOUT_ALARMS = dict.fromkeys(
    ("alarms.min_box_rate", "alarms.max_box_rate", "alarms.class_drift", "alarms.discriminator_patience"), None
)
TARGET_TEST, SOURCE_TEST = "target-test", "source-test"

_Frames = Mapping[str, list[Path]]


@dataclass(frozen=True)
class ArmRun:
    """One arm of one seed.

    Attributes:
        arm: Name of the arm.
        training: Names of the stages that trained the teacher; empty for the source teacher.
        measured: Directory of its metrics.
        images: Number of training images, repetitions included.
    """

    arm: str
    training: tuple[str, ...]
    measured: Path
    images: int


class StageGraph:
    """Stages of any number of plans in one directory.

    A stage's name ends with a hash of its arguments, configs and input files, including the scenes. So arms that two
    plans have in common run once, and a changed config never overwrites a finished arm.

    Args:
        root: Directory of all stages.

    Attributes:
        stages: By name; each stage follows the stages that it reads.
        seconds: Estimated duration of each stage, by name.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stages: dict[str, Stage] = {}
        self.seconds: dict[str, float] = {}
        self._digests: dict[Path, str] = {}

    def add_plan(self, plan: BenchmarkPlan) -> list[ArmRun]:
        """Add a plan's stages and return its runs, seed by seed."""
        return [run for seed in plan.seeds for run in _SeedStages(self, plan, seed).runs()]

    def stages_of(self, runs: Sequence[ArmRun]) -> list[Stage]:
        """Return the stages that runs depend on, in order."""
        required = {run.measured for run in runs}
        for stage in reversed(self.stages.values()):
            if stage.output in required:
                required |= {folder for path in stage.inputs for folder in path.parents}
        return [stage for stage in self.stages.values() if stage.output in required]

    def add(self, kind: str, arguments: Sequence[str], inputs: Sequence[Path], seed: int, seconds: float) -> Stage:
        """Return the stage of a command line without output and seed; add it if it is new.

        Inputs that are outputs of other stages enter the hash by the hashes of those stages.
        """
        movable = list(arguments)
        for number, path in enumerate(inputs):
            movable = [argument.replace(str(path), f"{{{number}}}") for argument in movable]
        recipe = json.dumps([movable, seed, [self._digest(path) for path in inputs]])
        digest = hashlib.sha256(recipe.encode()).hexdigest()
        name = f"{STAGES}/{kind}-seed{seed}-{digest[:10]}"
        if name not in self.stages:
            output = self.root / name
            command = (*arguments, f"--output={output}", f"--seed={seed}")
            self.stages[name] = Stage(name, command, tuple(inputs), output)
            self.seconds[name] = seconds
            self._digests[output] = digest
        return self.stages[name]

    def _digest(self, path: Path) -> str:
        for folder in (path, *path.parents):
            if folder in self._digests:
                return f"{self._digests[folder]}/{path.relative_to(folder)}"
        return _content_digest(path.absolute())


class _SeedStages:
    """Stages of one seed of a plan."""

    def __init__(self, graph: StageGraph, plan: BenchmarkPlan, seed: int) -> None:
        self.graph, self.plan, self.seed = graph, plan, seed
        self.estimate = Estimate(plan)
        self.source_train, self.source_val = self._files(plan.source.train), self._files(plan.source.val)
        self.target_train = self._files(plan.target.train)
        self.target_test, self.source_test = self._files([plan.target.test, plan.source.test])
        self.teacher = self._source_model("teacher", plan.teacher)

    def runs(self) -> list[ArmRun]:
        """Return one run for each arm."""
        return [self._run(name, arm) for name, arm in self.plan.arms_by_name.items()]

    def _run(self, name: str, arm: Arm) -> ArmRun:
        training = [] if arm.kind == "none" else [self._adapt(arm)]
        for _ in range(self.plan.self_training_rounds(arm)):
            training += self._self_train(arm, training[-1].output / MODEL)
        teacher = training[-1].output / MODEL if training else self.teacher
        models = {"teacher": teacher}
        if name in self.plan.students:
            running = self._source_model("student", self.plan.student)
            models["student"] = self._retrain(arm, teacher, running)
            if arm.kind == "none":
                models["student-before"] = running
        measured = self._measure(models).output
        return ArmRun(name, tuple(stage.name for stage in training), measured, self.estimate.images(arm))

    def _adapt(self, arm: Arm) -> Stage:
        plan, oracle = self.plan, arm.kind == "oracle"
        frames = {"source": self.source_train, "val": self.source_val}
        frames["pseudo" if oracle else "target"] = self.target_train
        epochs = max(1, round(plan.epochs * arm.steps))
        settings = {"trainer.max_epochs": epochs, "data.batches_per_epoch": plan.batches} | WITHOUT_ALARMS | arm.set
        if arm.ground_truth is not None:
            settings[arm.ground_truth] = [str(path) for path in self.target_train]
        configs = [*(plan.teacher.oracle if oracle else plan.teacher.adapt), *arm.configs]
        return self._fit("oracle" if oracle else "adapt", configs, self.teacher, frames, settings)

    def _self_train(self, arm: Arm, teacher: Path) -> list[Stage]:
        """Return the stages of one self-training round: labels, and a training on them."""
        labels = self._relabel(arm, teacher)
        return [
            labels,
            self._fit_labels("self_training", self.plan.teacher.self_training, teacher, [labels.output / LABELS]),
        ]

    def _retrain(self, arm: Arm, teacher: Path, running: Path) -> Path:
        # An oracle's student learns from the labels that the oracle learnt from.
        labels = self.target_train if arm.kind == "oracle" else [self._relabel(arm, teacher).output / LABELS]
        return self._fit_labels("student", self.plan.student.retrain, running, labels).output / MODEL

    def _fit_labels(self, kind: str, configs: Sequence[str], weights: Path, labels: list[Path]) -> Stage:
        frames = {"source": self.source_train, "pseudo": labels, "val": self.source_val}
        return self._fit(kind, configs, weights, frames, {"data.empty_pseudo": True})

    def _relabel(self, arm: Arm, teacher: Path) -> Stage:
        arguments = ["relabel", f"--weights={teacher}", "--frames", *map(str, self.target_train)]
        arguments += [*flags(arm.relabel or self.plan.relabel, kind=LabelOptions), *self._invalid_share()]
        return self.graph.add("relabel", arguments, [teacher, *self.target_train], self.seed, self.estimate.relabel())

    def _source_model(self, role: str, model: BenchmarkTeacher | BenchmarkStudent) -> Path:
        if model.weights is not None:
            return Path(model.weights)
        frames = {"train": self.source_train, "val": self.source_val}
        return self._fit(f"{role}-source", model.fit, None, frames, model.set).output / MODEL

    def _measure(self, models: Mapping[str, Path]) -> Stage:
        arguments = ["benchmark", "measure", "--weights", *(f"{name}={path}" for name, path in models.items())]
        arguments += ["--frames", f"{TARGET_TEST}={self.target_test}", f"{SOURCE_TEST}={self.source_test}"]
        inputs = [*models.values(), self.target_test, self.source_test]
        seconds = self.estimate.measure(len(models))
        return self.graph.add("measure", arguments + self._invalid_share(), inputs, self.seed, seconds)

    def _invalid_share(self) -> list[str]:
        """Return the plan's `data.max_invalid_share` as an option of commands other than `fit`."""
        share = self.plan.set.get("data.max_invalid_share")
        return [] if share is None else [f"--max-invalid-share={share}"]

    def _fit(
        self,
        kind: str,
        configs: Sequence[str],
        weights: Path | None,
        frames: Mapping[str, list[Path]],
        settings: FitOptions,
    ) -> Stage:
        seconds = self.estimate.fit(kind, configs, settings)
        settings = self.plan.set | settings
        arguments = ["fit", *(f"--config={config}" for config in configs)]
        arguments += [] if weights is None else [f"--model.weights={weights}"]
        arguments += [f"--data.{role}={json.dumps([str(p) for p in paths])}" for role, paths in sorted(frames.items())]
        arguments += [f"{option(name)}={_flag_value(value)}" for name, value in settings.items()]
        inputs = [Path(config) for config in configs] + ([] if weights is None else [weights])
        inputs += [path for _, paths in sorted(frames.items()) for path in paths]
        inputs += [Path(value) for value in settings.values() if isinstance(value, str) and Path(value).is_file()]
        return self.graph.add(kind, arguments, inputs, self.seed, seconds)

    def _files(self, entries: Sequence[str]) -> list[Path]:
        return [self._scenes(e.removeprefix(SCENES)) if e.startswith(SCENES) else Path(e) for e in entries]

    def _scenes(self, name: str) -> Path:
        settings = self.plan.scenes[name]
        options = [f"{option(key)}={_flag_value(value)}" for key, value in sorted(settings.items()) if key != "seed"]
        seed = int(settings.get("seed", self.seed))
        stage = self.graph.add("scenes", ["scenes", *options], [], seed, self.estimate.scenes(name))
        return stage.output / "annotations.json"


def _flag_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@lru_cache(maxsize=1024)
def _content_digest(path: Path) -> str:
    if path.suffix in (".yaml", ".yml"):  # parsed: a comment changes nothing
        return json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), sort_keys=True, default=str)
    digest = content_hash(path)
    if path.suffix == ".json":  # a new export with the same names has images of other sizes
        digest += json.dumps([file.stat().st_size for file in read_coco_frames(path).files if file.is_file()])
    return digest
