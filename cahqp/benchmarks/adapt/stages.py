"""Stages of a benchmark: plans are expanded into commands, and stages that plans have in common are merged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahqp.benchmarks.adapt.estimate import Estimate
from cahqp.benchmarks.adapt.graph import StageGraph
from cahqp.benchmarks.adapt.plan import Arm, BenchmarkModel, BenchmarkPlan, Expert, FitOptions
from cahqp.cycle.plan import SCENES, CalibrationRules
from cahqp.cycle.stages import LABELS, MODEL
from cahqp.errors import option
from cahqp.labels.options import LabelOptions
from cahqp.labels.views import parse_views
from cahqp.runs.options import flags
from cahqp.runs.state import Stage

# A benchmark measures bad arms too: a stopped stage would stop all others. A loss that is not finite still does.
WITHOUT_ALARMS = dict.fromkeys(
    ("alarms.min_box_rate", "alarms.max_box_rate", "alarms.class_drift", "alarms.discriminator_patience"), None
)
TARGET_TEST, SOURCE_TEST = "target-test", "source-test"

CALIBRATION, SOFT = "calibration.json", "soft"
EPOCH = 50
"""Steps per epoch of a student whose steps the plan sets."""

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


def add_plan(graph: StageGraph, plan: BenchmarkPlan) -> list[ArmRun]:
    """Add a plan's stages to a graph and return its runs, seed by seed."""
    return [run for seed in plan.seeds for run in _SeedStages(graph, plan, seed).runs()]


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
        teacher = self.teacher
        if "start" in (arm.kind, arm.begin):
            teacher = self._start_model(self.plan.teacher)
        training = [] if arm.kind in ("none", "start") or not arm.adaptation else [self._adapt(arm, teacher)]
        for _ in range(self.plan.self_training_rounds(arm)):
            training += self._self_train(arm, training[-1].output / MODEL if training else teacher)
        teacher = training[-1].output / MODEL if training else teacher
        models = {"teacher": teacher}
        if name in self.plan.students:
            running = self._source_model("student", self.plan.student)
            models |= self._students(arm, teacher, running)
            if arm.kind == "none":
                models["student-before"] = running
        measured = self._measure(models).output
        return ArmRun(name, tuple(stage.name for stage in training), measured, self.estimate.images(arm))

    def _adapt(self, arm: Arm, teacher: Path) -> Stage:
        plan, oracle = self.plan, arm.kind == "oracle"
        frames = {"source": self.source_train, "val": self.source_val}
        frames["pseudo" if oracle else "target"] = self.target_train
        epochs = max(1, round(plan.epochs * arm.steps))
        settings = {"trainer.max_epochs": epochs, "data.batches_per_epoch": plan.batches} | WITHOUT_ALARMS | arm.set
        if arm.ground_truth is not None:
            settings[arm.ground_truth] = [str(path) for path in self.target_train]
        configs = [*(plan.teacher.oracle if oracle else plan.teacher.adapt), *arm.configs]
        return self._fit("oracle" if oracle else "adapt", configs, teacher, frames, settings)

    def _self_train(self, arm: Arm, teacher: Path) -> list[Stage]:
        """Return the stages of one self-training round: labels, and a training on them."""
        labels = self._relabel(arm, teacher)
        return [
            labels,
            self._fit_labels("self_training", self.plan.teacher.self_training, teacher, [labels.output / LABELS]),
        ]

    def _students(self, arm: Arm, teacher: Path, running: Path) -> dict[str, Path]:
        """Return the model files of an arm's students by name."""
        section = self.plan.student
        runs = section.runs_of(arm)
        labels, store = (
            self.target_train,
            Path(),
        )  # an oracle's student learns from the labels that the oracle learnt from
        if arm.kind != "oracle":
            folder = self._relabel(arm, teacher, any(run.targets != "hard" for run in runs.values())).output
            labels, store = [folder / LABELS], folder / SOFT
        stages = {"student": self._fit_labels("student", section.retrain, running, labels)}
        for name, run in runs.items():
            length = {"data.batches_per_epoch": EPOCH, "trainer.max_epochs": max(1, round(run.steps / EPOCH))}
            if run.targets == "hard":
                stage = self._fit_labels("student", section.retrain, running, labels, length)
            else:
                hard = labels if run.targets == "combined" else []
                frames = {"source": [*self.source_train, *hard], "val": self.source_val}
                settings = {"data.store": store, "model.teacher": teacher} | length
                stage = self._fit("student", section.distil, running, frames, settings)
            stages[f"student-{name}"] = stage
        return {name: stage.output / MODEL for name, stage in stages.items()}

    def _fit_labels(
        self, kind: str, configs: Sequence[str], weights: Path, labels: list[Path], length: FitOptions | None = None
    ) -> Stage:
        frames = {"source": self.source_train, "pseudo": labels, "val": self.source_val}
        return self._fit(kind, configs, weights, frames, {"data.empty_pseudo": True} | (length or {}))

    def _relabel(self, arm: Arm, teacher: Path, soft: bool = False) -> Stage:
        arguments = ["relabel", f"--weights={teacher}", "--frames", *map(str, self.target_train)]
        inputs, rules = [teacher, *self.target_train], arm.relabel or self.plan.relabel
        teachers, calibrate = [teacher], arm.calibrate or self.plan.calibrate
        if arm.expert and self.plan.expert is not None:
            teachers.append(self._expert(self.plan.expert))
            arguments.append(f"--teachers={teachers[1]}")
            calibrate = calibrate or CalibrationRules()
        if calibrate is not None:
            calibration = self._calibrate(calibrate, teachers, rules).output / CALIBRATION
            arguments += [f"--calibration={calibration}", *calibrate.relabel_flags()]
            inputs += [*teachers[1:], calibration]
        arguments += [*flags(rules, kind=LabelOptions), *(["--soft"] if soft else []), *self._invalid_share()]
        return self.graph.add(
            "relabel", arguments, inputs, self.seed, self.estimate.relabel(len(parse_views(rules.views)))
        )

    def _expert(self, expert: Expert) -> Path:
        """Return the expert's model file, adapted to the target if the plan has configs for it."""
        model = self._source_model("expert", expert)
        if not expert.adapt:
            return model
        frames = {"source": self.source_train, "val": self.source_val, "target": self.target_train}
        length = {"trainer.max_epochs": self.plan.epochs, "data.batches_per_epoch": self.plan.batches}
        return self._fit("adapt", expert.adapt, model, frames, length | WITHOUT_ALARMS).output / MODEL

    def _calibrate(self, calibrate: CalibrationRules, teachers: list[Path], rules: LabelOptions) -> Stage:
        """Return the stage that calibrates the scores of the labelling on `source.val`."""
        arguments = ["calibrate", f"--weights={teachers[0]}", *(f"--teachers={expert}" for expert in teachers[1:])]
        arguments += ["--frames", *map(str, self.source_val), *calibrate.calibrate_flags(rules)]
        seconds = self.estimate.frames(self.plan.source.val, len(teachers) * len(parse_views(rules.views)))
        return self.graph.add("calibrate", arguments, [*teachers, *self.source_val], self.seed, seconds)

    def _source_model(self, role: str, model: BenchmarkModel) -> Path:
        if model.weights is not None:
            return Path(model.weights)
        frames = {"train": self.source_train, "val": self.source_val}
        start = self._start_model(model) if model.start else None
        settings = {} if model.start else model.set
        return self._fit(f"{role}-source", model.fit, start, frames, settings).output / MODEL

    def _start_model(self, model: BenchmarkModel) -> Path:
        """Return the published model as a model file, with thresholds of `source.val`, without training."""
        frames = {"train": self.source_train, "val": self.source_val}
        return self._fit("start", model.start, None, frames, model.set | {"trainer.max_epochs": 0}).output / MODEL

    def _measure(self, models: Mapping[str, Path]) -> Stage:
        arguments = ["benchmark", "measure", "--weights", *(f"{name}={path}" for name, path in models.items())]
        arguments += ["--frames", f"{TARGET_TEST}={self.target_test}", f"{SOURCE_TEST}={self.source_test}"]
        arguments += [f"--min-objects={self.plan.min_objects}"]
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
        inputs += [value for value in settings.values() if isinstance(value, Path)]
        inputs += [Path(value) for value in settings.values() if isinstance(value, str) and Path(value).exists()]
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
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
