"""From a plan to the commands that carry it out, in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cahqp.cycle.plan import SCENES, Plan
from cahqp.runs.state import Stage

CYCLE = "cycle.json"
MODEL, LABELS = "model.safetensors", "labels.json"
TEST = "target-test"
VALIDATION = "source-val"
ADAPT, ORACLE = "teacher-adapt", "teacher-oracle"


class Stages:
    """The stages of a plan, over one directory.

    Args:
        plan: A plan that was checked.
        root: The cycle's directory; each stage has one of its own in it.
    """

    def __init__(self, plan: Plan, root: Path) -> None:
        self.plan = plan
        self.root = root
        self.source_train = [self.data(entry) for entry in plan.source.train]
        self.source_val = [self.data(entry) for entry in plan.source.val]
        self.target_train = [self.data(entry) for entry in plan.target.train]
        self.target_test = [self.data(entry) for entry in plan.target.test]
        self.old_teacher = self._start(plan.teacher.weights, "teacher-source")
        self.old_student = self._start(plan.student.weights, "student-source")

    def all(self) -> list[Stage]:
        """Return every stage in an order that meets each one's needs."""
        compared = [
            *self._source_training(),
            *self._adaptation(),
            *self._relabelling(),
            self._retraining(),
            self._evaluation(),
            self._publication(),
        ]
        return [*self._scenes(), *compared, self._report(compared)]

    def preparation(self) -> list[Stage]:
        """Return the stages that come before anything is adapted: scenes, and models that are not given."""
        return [*self._scenes(), *self._source_training()]

    @property
    def models(self) -> dict[str, Path]:
        """The models that are compared, by the name they have in the table."""
        adapted = {f"teacher-{arm}": self._last(f"teacher-{arm}") for arm in self.plan.arms}
        return {
            "teacher-source": self.old_teacher,
            "teacher-adapted": self._last(ADAPT),
            **adapted,
            "student-old": self.old_student,
            "student-new": self._model("student-retrain"),
        }

    def _scenes(self) -> list[Stage]:
        return [
            self.stage(f"scenes-{name}", "scenes", [], [f"--{key}={_value(value)}" for key, value in given.items()])
            for name, given in self.plan.scenes.items()
        ]

    def _source_training(self) -> list[Stage]:
        stages = []
        if self.plan.teacher.weights is None:
            stages.append(self._fit("teacher-source", self.plan.teacher.fit, None, train=self.source_train))
        if self.plan.student.weights is None:
            stages.append(self._fit("student-source", self.plan.student.fit, None, train=self.source_train))
        return stages

    def _adaptation(self) -> list[Stage]:
        teacher, frame_interval = self.plan.teacher, self.plan.target.frame_interval
        stages = self.adaptation(ADAPT, teacher.adapt, self.target_train, frame_interval)
        for arm, overlays in (("mean-teacher", teacher.mean_teacher), ("ca-hqp", teacher.ca_hqp)):
            if arm in self.plan.arms:
                configs = [*teacher.adapt, *overlays]
                stages += self.adaptation(f"teacher-{arm}", configs, self.target_train, frame_interval)
        if "oracle" in self.plan.arms:
            configs = [*teacher.fit, *teacher.oracle]
            stages.append(self._fit(ORACLE, configs, self.old_teacher, train=self.target_train))
        return stages

    def adaptation(
        self, name: str, configs: Sequence[str], target: list[Path], frame_interval: float | None
    ) -> list[Stage]:
        """Return what adapts the teacher; the last stage makes the adapted one.

        Args:
            name: Of the adaptation; self-training rounds are `NAME-self-training`, `NAME-self-training-2`, ...,
                their labels `NAME-labels`, ...
            configs: Of the adaptation.
            target: What it adapts to.
            frame_interval: Seconds between the frames taken from videos; all of them where `None`.
        """
        stages = [self.fit(name, configs, self.old_teacher, frame_interval, source=self.source_train, target=target)]
        for turn in self._turns:
            teacher = stages[-1].output / MODEL
            stages.append(self.relabel(f"{name}-labels{turn}", teacher, target, frame_interval))
            data = {"source": self.source_train, "pseudo": [stages[-1].output / LABELS]}
            stages.append(
                self.fit(f"{name}-self-training{turn}", self.plan.teacher.self_training, teacher, None, **data)
            )
        return stages

    @property
    def _turns(self) -> list[str]:
        """What the name of each refit ends with; the first with nothing."""
        teacher = self.plan.teacher
        return (
            ["", *(f"-{turn}" for turn in range(2, teacher.self_training_rounds + 1))] if teacher.self_training else []
        )

    def _relabelling(self) -> list[Stage]:
        # Labels of the teacher before adaptation are for the pictures in the report and for nothing else.
        return [
            self._relabel("relabel-before", self.old_teacher),
            self._relabel("relabel", self._last(ADAPT)),
        ]

    def relabel(self, name: str, weights: Path, target: Sequence[Path], frame_interval: float | None) -> Stage:
        """Return the stage that labels target frames with a teacher."""
        given = [f"--weights={weights}", "--frames", *map(str, target), *self.plan.relabel.flags()]
        given += [] if frame_interval is None else [f"--frame_interval={frame_interval}"]
        return self.stage(name, "relabel", [weights, *target], given)

    def _relabel(self, name: str, weights: Path) -> Stage:
        return self.relabel(name, weights, self.target_train, self.plan.target.frame_interval)

    def _retraining(self) -> Stage:
        labels = [self.root / "relabel" / LABELS]
        configs = self.plan.student.retrain
        return self._fit("student-retrain", configs, self.old_student, source=self.source_train, pseudo=labels)

    def _evaluation(self) -> Stage:
        models = self.models
        given = ["--weights", *(f"{name}={path}" for name, path in models.items()), "--frames"]
        given += [f"{TEST}={path}" for path in self.target_test] + [f"{VALIDATION}={path}" for path in self.source_val]
        inputs = [*models.values(), *self.target_test, *self.source_val]
        return self.stage("evaluate", "evaluate", inputs, given)

    def _publication(self) -> Stage:
        metrics = self.root / "evaluate" / "metrics.json"
        new = self._model("student-retrain")
        given = [
            f"--candidate={new}",
            f"--running={self.old_student}",
            f"--metrics={metrics}",
            f"--frames={TEST if self.target_test else VALIDATION}",
        ]
        return self.stage("published", "publish", [new, self.old_student, metrics], given, seeded=False)

    def _report(self, compared: Sequence[Stage]) -> Stage:
        return self.stage(
            "report", "report", [stage.output for stage in compared], [f"--run={self.root}"], seeded=False
        )

    def _fit(self, name: str, configs: Sequence[str], weights: Path | None, **data: list[Path]) -> Stage:
        return self.fit(name, configs, weights, self.plan.target.frame_interval, **data)

    def fit(
        self, name: str, configs: Sequence[str], weights: Path | None, frame_interval: float | None, **data: list[Path]
    ) -> Stage:
        """Return a training.

        Args:
            name: Of the stage.
            configs: Later ones lie over earlier ones.
            weights: Model file to start from; `None` for a fresh model.
            frame_interval: Seconds between the frames taken from target videos; all of them where `None`.
            **data: Files by role; `val` is the source's.
        """
        data["val"] = self.source_val
        given = [f"--config={config}" for config in configs]
        given += [] if weights is None else [f"--model.weights={weights}"]
        given += [f"--data.frame_interval={frame_interval}"] if "target" in data and frame_interval is not None else []
        given += [f"--data.{role}={json.dumps([str(path) for path in paths])}" for role, paths in data.items()]
        inputs = [Path(config) for config in configs] + ([] if weights is None else [weights])
        return self.stage(name, "fit", [*inputs, *(path for paths in data.values() for path in paths)], given)

    def stage(
        self, name: str, command: str, inputs: Sequence[Path], given: Sequence[str], seeded: bool = True
    ) -> Stage:
        """Return a stage with a directory of its own.

        Args:
            name: Of the stage and its directory.
            command: Of cahqp.
            inputs: Files and directories that decide the result.
            given: Options beside `--output` and `--seed`.
            seeded: Whether the command takes a seed.
        """
        output = self.root / name
        seed = [f"--seed={self.plan.seed}"] if seeded else []
        return Stage(name, (command, *given, f"--output={output}", *seed), tuple(inputs), output)

    def data(self, entry: str) -> Path:
        """Return the path of an entry of frames; `scenes:NAME` lies in the cycle's own directory."""
        if entry.startswith(SCENES):
            return self.root / f"scenes-{entry.removeprefix(SCENES)}" / "annotations.json"
        return Path(entry)

    def _start(self, weights: str | None, stage: str) -> Path:
        return self._model(stage) if weights is None else Path(weights)

    def _model(self, stage: str) -> Path:
        return self.root / stage / MODEL

    def _last(self, adaptation: str) -> Path:
        """Return the model that an adaptation ends with; an oracle has no refit."""
        self_training = f"-self-training{self._turns[-1]}" if self._turns and adaptation != ORACLE else ""
        return self._model(adaptation + self_training)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
