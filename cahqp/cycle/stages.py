"""Stages of a cycle plan: the commands that run it, in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cahqp.cycle.plan import SCENES, BasePlan, CyclePlan
from cahqp.relabel.options import LabelOptions
from cahqp.runs.options import flags
from cahqp.runs.state import Stage

CYCLE = "cycle.json"
MODEL, LABELS = "model.safetensors", "labels.json"
TEST = "target-test"
VALIDATION = "source-val"
ADAPT, ORACLE = "teacher-adapt", "teacher-oracle"


class PlanStages:
    """Stages that every kind of plan has, below one directory.

    Args:
        plan: A valid plan.
        root: Directory of the cycle. Each stage has a directory in it.
    """

    plan: BasePlan

    def __init__(self, plan: BasePlan, root: Path) -> None:
        self.plan = plan
        self.root = root
        self.source_train = self.locate(plan.source.train)
        self.source_val = self.locate(plan.source.val)
        self.old_teacher = Path(plan.teacher.weights or root / "teacher-source" / MODEL)
        self.old_student = Path(plan.student.weights or root / "student-source" / MODEL)

    def scenes(self) -> list[Stage]:
        """Return the stages that render synthetic recordings."""
        stages = []
        for name, options in self.plan.scenes.items():
            texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in options.items()}
            stages.append(self.stage(f"scenes-{name}", "scenes", [], [f"--{key}={texts[key]}" for key in texts]))
        return stages

    def source_training(self) -> list[Stage]:
        """Return the trainings of the models without given weights."""
        models = (("teacher-source", self.plan.teacher), ("student-source", self.plan.student))
        return [
            self.fit(name, model.fit, None, train=self.source_train) for name, model in models if model.weights is None
        ]

    def adaptation(
        self, name: str, configs: Sequence[str], target: list[Path], frame_interval: float | None
    ) -> list[Stage]:
        """Return the stages that adapt the teacher. The last one makes the adapted teacher.

        Args:
            name: Name of the adaptation. Its self-training rounds are `NAME-self-training`, `NAME-self-training-2`,
                ..., and their labels `NAME-labels`, ...
            configs: Configs of the adaptation.
            target: Frames to adapt to.
            frame_interval: Seconds between the frames taken from videos; `None` takes all frames.
        """
        stages = [self.fit(name, configs, self.old_teacher, frame_interval, source=self.source_train, target=target)]
        for suffix in self.round_suffixes:
            teacher = stages[-1].output / MODEL
            labels = self.relabel(f"{name}-labels{suffix}", teacher, target, frame_interval)
            data = {"source": self.source_train, "pseudo": [labels.output / LABELS]}
            training = self.fit(f"{name}-self-training{suffix}", self.plan.teacher.self_training, teacher, None, **data)
            stages += [labels, training]
        return stages

    @property
    def round_suffixes(self) -> list[str]:
        """Suffix of the stages of each self-training round; empty for the first one."""
        rounds = self.plan.teacher.self_training_rounds if self.plan.teacher.self_training else 0
        return ["", *(f"-{number}" for number in range(2, rounds + 1))][:rounds]

    def relabel(self, name: str, weights: Path, target: Sequence[Path], frame_interval: float | None) -> Stage:
        """Return the stage that labels target frames with a teacher."""
        arguments = [f"--weights={weights}", "--frames", *map(str, target)]
        arguments += flags(self.plan.relabel, kind=LabelOptions)
        arguments += [] if frame_interval is None else [f"--frame_interval={frame_interval}"]
        return self.stage(name, "relabel", [weights, *target], arguments)

    def fit(
        self,
        name: str,
        configs: Sequence[str],
        weights: Path | None,
        frame_interval: float | None = None,
        **data: list[Path],
    ) -> Stage:
        """Return a training stage.

        Args:
            name: Name of the stage.
            configs: Configs; later ones are laid over earlier ones.
            weights: Model file to start from; `None` starts from random weights.
            frame_interval: Seconds between the frames taken from target videos; `None` takes all frames.
            **data: Training files by role. Validation files are the source's.
        """
        data["val"] = self.source_val
        arguments = [f"--config={config}" for config in configs]
        arguments += [] if weights is None else [f"--model.weights={weights}"]
        if "target" in data and frame_interval is not None:
            arguments.append(f"--data.frame_interval={frame_interval}")
        arguments += [f"--data.{role}={json.dumps([str(path) for path in paths])}" for role, paths in data.items()]
        inputs = [Path(config) for config in configs] + ([] if weights is None else [weights])
        return self.stage(name, "fit", [*inputs, *(path for paths in data.values() for path in paths)], arguments)

    def evaluate(self, name: str, models: dict[str, Path], tests: Sequence[tuple[str, Path]]) -> Stage:
        """Return the stage that measures models on test sets and on source validation, all by name."""
        sets = [*tests, *((VALIDATION, path) for path in self.source_val)]
        arguments = ["--weights", *(f"{key}={path}" for key, path in models.items())]
        arguments += ["--frames", *(f"{key}={path}" for key, path in sets)]
        return self.stage(name, "evaluate", [*models.values(), *(path for _, path in sets)], arguments)

    def publish(self, name: str, candidate: Path, running: Path, metrics: Path, frames: str) -> Stage:
        """Return the stage that publishes the better of two students by their AP50."""
        arguments = [f"--candidate={candidate}", f"--running={running}", f"--metrics={metrics}", f"--frames={frames}"]
        return self.stage(name, "publish", [candidate, running, metrics], arguments, seeded=False)

    def stage(
        self, name: str, command: str, inputs: Sequence[Path], arguments: Sequence[str], seeded: bool = True
    ) -> Stage:
        """Return a stage with its own directory.

        Args:
            name: Name of the stage and its directory.
            command: Command of cahqp.
            inputs: Files and directories that decide the result.
            arguments: Options besides `--output` and `--seed`.
            seeded: Whether the command takes a seed.
        """
        output = self.root / name
        seed = [f"--seed={self.plan.seed}"] if seeded else []
        return Stage(name, (command, *arguments, f"--output={output}", *seed), tuple(inputs), output)

    def locate(self, entries: Sequence[str]) -> list[Path]:
        """Return the paths of entries of frames. `scenes:NAME` is in the cycle's own directory."""
        scenes = [entry.removeprefix(SCENES) if entry.startswith(SCENES) else None for entry in entries]
        return [
            Path(entry) if name is None else self.root / f"scenes-{name}" / "annotations.json"
            for entry, name in zip(entries, scenes, strict=True)
        ]


class CycleStages(PlanStages):
    """Stages of a cycle plan.

    Args:
        plan: A valid plan.
        root: Directory of the cycle.
    """

    plan: CyclePlan

    def __init__(self, plan: CyclePlan, root: Path) -> None:
        super().__init__(plan, root)
        self.target_train = self.locate(plan.target.train)
        self.target_test = self.locate(plan.target.test)

    def all(self) -> list[Stage]:
        """Return every stage, each one after the stages whose outputs it reads."""
        retraining = self.fit(
            "student-retrain",
            self.plan.student.retrain,
            self.old_student,
            source=self.source_train,
            pseudo=[self.root / "relabel" / LABELS],
        )
        metrics = self.root / "evaluate" / "metrics.json"
        frames = TEST if self.target_test else VALIDATION
        compared = [
            *self.source_training(),
            *self._adaptations(),
            # Labels of the teacher before adaptation are for the images in the report only.
            self._relabel("relabel-before", self.old_teacher),
            self._relabel("relabel", self._last(ADAPT)),
            retraining,
            self.evaluate("evaluate", self.models, [(TEST, path) for path in self.target_test]),
            self.publish("published", retraining.output / MODEL, self.old_student, metrics, frames),
        ]
        outputs = [stage.output for stage in compared]
        report = self.stage("report", "report", outputs, [f"--run={self.root}"], seeded=False)
        return [*self.scenes(), *compared, report]

    @property
    def models(self) -> dict[str, Path]:
        """The compared models by their names in the table."""
        return {
            "teacher-source": self.old_teacher,
            "teacher-adapted": self._last(ADAPT),
            **{f"teacher-{arm}": self._last(f"teacher-{arm}") for arm in self.plan.arms},
            "student-old": self.old_student,
            "student-new": self.root / "student-retrain" / MODEL,
        }

    def _adaptations(self) -> list[Stage]:
        teacher, frame_interval = self.plan.teacher, self.plan.target.frame_interval
        stages = self.adaptation(ADAPT, teacher.adapt, self.target_train, frame_interval)
        for arm, overlays in (("mean-teacher", teacher.mean_teacher), ("ca-hqp", teacher.ca_hqp)):
            if arm in self.plan.arms:
                configs = [*teacher.adapt, *overlays]
                stages += self.adaptation(f"teacher-{arm}", configs, self.target_train, frame_interval)
        if "oracle" in self.plan.arms:
            configs = [*teacher.fit, *teacher.oracle]
            stages.append(self.fit(ORACLE, configs, self.old_teacher, train=self.target_train))
        return stages

    def _relabel(self, name: str, weights: Path) -> Stage:
        return self.relabel(name, weights, self.target_train, self.plan.target.frame_interval)

    def _last(self, adaptation: str) -> Path:
        """Return the final model of an adaptation. An oracle has no self-training rounds."""
        suffixes = self.round_suffixes if adaptation != ORACLE else []
        return self.root / (f"{adaptation}-self-training{suffixes[-1]}" if suffixes else adaptation) / MODEL
