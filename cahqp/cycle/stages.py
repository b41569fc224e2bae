"""Stages of a cycle plan: the commands that run it, in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from cahqp.cycle.plan import SCENES, BasePlan, CyclePlan
from cahqp.errors import option
from cahqp.labels.options import LabelOptions
from cahqp.records import Name, Record, read_record
from cahqp.runs.options import flags
from cahqp.runs.state import Stage

CYCLE = "cycle.json"


class Begun(Record):
    """Content of `cycle.json`, as far as a resumed run needs it.

    Attributes:
        name: Name of the plan.
        seed: Seed of every stage.
        replay: Whether a plan of rounds uses its replay buffer.
        arms: Teachers for comparison.
    """

    name: Name | None = None
    seed: int | None = None
    replay: bool = True
    arms: list[Name] = Field(default_factory=list)


def read_begun(root: Path | None) -> Begun:
    """Return the content of `cycle.json` in the directory of a cycle; without the file, its defaults.

    Raises:
        RunError: The file is damaged.
    """
    if root is None or not (root / CYCLE).is_file():
        return Begun()
    return read_record(root / CYCLE, Begun, "Restore a copy, or give another --output.")


MODEL, LABELS = "model.safetensors", "labels.json"
TEST = "target-test"
VALIDATION = "source-val"
FIRST_LABELS = "relabel-before"


class PlanStages:
    """Builder of the stages that every kind of plan has, below one directory.

    Args:
        plan: A valid plan.
        root: Directory of the cycle. Each stage has a directory in it.

    Attributes:
        made: The stages so far, each one after the stages whose outputs it reads.
    """

    plan: BasePlan

    def __init__(self, plan: BasePlan, root: Path) -> None:
        self.plan = plan
        self.root = root
        self.made: list[Stage] = []
        self.source_train = self.locate(plan.source.train)
        self.source_val = self.locate(plan.source.val)
        self.old_teacher = Path(plan.teacher.weights or root / "teacher-source" / MODEL)
        self.old_student = Path(plan.student.weights or root / "student-source" / MODEL)

    def scenes(self) -> None:
        """Add the stages that render synthetic recordings."""
        for name, options in self.plan.scenes.items():
            texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in options.items()}
            self.stage(f"scenes-{name}", "scenes", [], [f"{option(key)}={text}" for key, text in texts.items()])

    def source_training(self) -> None:
        """Add the trainings of the models without given weights."""
        for name, model in (("teacher-source", self.plan.teacher), ("student-source", self.plan.student)):
            if model.weights is None:
                self.fit(name, model.fit, None, train=self.source_train)

    def adaptation(
        self, name: str, configs: Sequence[str], target: list[Path], frame_interval: float | None
    ) -> Path:  # fmt: skip
        """Add the stages that adapt the teacher, and return the adapted teacher.

        Args:
            name: Name of the adaptation. Its self-training rounds are `NAME-self-training`, `NAME-self-training-2`,
                ..., and their labels `NAME-labels`, ...
            configs: Configs of the adaptation.
            target: Frames to adapt to.
            frame_interval: Seconds between the frames taken from videos; `None` takes all frames.
        """
        settings = self.plan.teacher
        teacher = self.fit(name, configs, self.old_teacher, frame_interval, source=self.source_train, target=target)
        for number in range(1, settings.self_training_rounds + 1 if settings.self_training else 1):
            suffix = f"-{number}" if number > 1 else ""
            labels = self.relabel(f"{name}-labels{suffix}", teacher, target, frame_interval)
            data = {"source": self.source_train, "pseudo": [labels]}
            teacher = self.fit(f"{name}-self-training{suffix}", settings.self_training, teacher, None, **data)
        return teacher

    def relabel(self, name: str, weights: Path, target: Sequence[Path], frame_interval: float | None) -> Path:
        """Add the stages that label target frames with a teacher, and return the labels."""
        rules, calibrate = self.plan.relabel, self.plan.calibrate
        arguments = [f"--weights={weights}", "--frames", *map(str, target)]
        arguments += flags(rules, kind=LabelOptions)
        arguments += [] if frame_interval is None else [f"--frame-interval={frame_interval}"]
        inputs = [weights, *target]
        if calibrate is not None:
            options = [f"--weights={weights}", "--frames", *map(str, self.source_val)]
            options += calibrate.calibrate_flags(rules)
            calibration = self.stage(f"{name}-calibration", "calibrate", [weights, *self.source_val], options)
            arguments += [f"--calibration={calibration}", *calibrate.relabel_flags()]
            inputs.append(calibration)
        return self.stage(name, "relabel", inputs, arguments) / LABELS

    def fit(
        self,
        name: str,
        configs: Sequence[str],
        weights: Path | None,
        frame_interval: float | None = None,
        **data: list[Path],
    ) -> Path:
        """Add a training and return its model.

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
        inputs += [path for paths in data.values() for path in paths]
        return self.stage(name, "fit", inputs, arguments) / MODEL

    def evaluate(self, name: str, models: dict[str, Path], tests: Sequence[tuple[str, Path]]) -> Path:
        """Add the stage that measures models on test sets and source validation, by name, and return the metrics."""
        sets = self._measured(tests)
        arguments = ["--weights", *(f"{key}={path}" for key, path in models.items())]
        arguments += ["--frames", *(f"{key}={path}" for key, path in sets)]
        inputs = [*models.values(), *(path for _, path in sets)]
        return self.stage(name, "evaluate", inputs, arguments) / "metrics.json"

    def publish(
        self, name: str, candidate: Path, running: Path, metrics: Path, tests: Sequence[tuple[str, Path]], frames: str
    ) -> None:
        """Add the stage that publishes the better of two students by their AP50 on the frames of one name."""
        labelled = [path for key, path in self._measured(tests) if key == frames]
        arguments = [f"--candidate={candidate}", f"--running={running}", f"--metrics={metrics}", f"--frames={frames}"]
        arguments += ["--labelled", *map(str, labelled)]
        self.stage(name, "publish", [candidate, running, metrics, *labelled], arguments, seeded=False)

    def _measured(self, tests: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
        """Return the test sets and the source validation by name."""
        return [*tests, *((VALIDATION, path) for path in self.source_val)]

    def stage(
        self, name: str, command: str, inputs: Sequence[Path], arguments: Sequence[str], seeded: bool = True
    ) -> Path:  # fmt: skip
        """Add a stage and return its directory.

        Args:
            name: Name of the stage and its directory.
            command: Command of cahqp.
            inputs: Files and directories that decide the result.
            arguments: Options besides `--output` and `--seed`.
            seeded: Whether the command takes a seed.
        """
        output = self.root / name
        seed = [f"--seed={self.plan.seed}"] if seeded else []
        self.made.append(Stage(name, (command, *arguments, f"--output={output}", *seed), tuple(inputs), output))
        return output

    def locate(self, entries: Sequence[str]) -> list[Path]:
        """Return the paths of entries of frames. `scenes:NAME` is in the cycle's own directory."""
        return [
            self.root / f"scenes-{entry.removeprefix(SCENES)}" / "annotations.json"
            if entry.startswith(SCENES)
            else Path(entry)
            for entry in entries
        ]


class CycleStages(PlanStages):
    """Builder of the stages of a cycle plan.

    Args:
        plan: A valid plan.
        root: Directory of the cycle.

    Attributes:
        models: The compared models by their names in the table.
    """

    plan: CyclePlan

    def __init__(self, plan: CyclePlan, root: Path) -> None:
        super().__init__(plan, root)
        self.models: dict[str, Path] = {}
        self._build()

    def _build(self) -> None:
        target, frame_interval = self.locate(self.plan.target.train), self.plan.target.frame_interval
        test = [(TEST, path) for path in self.locate(self.plan.target.test)]
        self.scenes()
        start = len(self.made)
        self.source_training()
        # Labels of the teacher before adaptation are for pictures only: an early one, and those in the report.
        self.relabel(FIRST_LABELS, self.old_teacher, target, frame_interval)
        adapted = self.adaptation("teacher-adapt", self.plan.teacher.adapt, target, frame_interval)
        arms = self._arms(target, frame_interval)
        labels = self.relabel("relabel", adapted, target, frame_interval)
        data = {"source": self.source_train, "pseudo": [labels]}
        student = self.fit("student-retrain", self.plan.student.retrain, self.old_student, None, **data)
        self.models = {"teacher-source": self.old_teacher, "teacher-adapted": adapted}
        self.models |= {f"teacher-{arm}": arms[arm] for arm in self.plan.arms}
        self.models |= {"student-old": self.old_student, "student-new": student}
        metrics = self.evaluate("evaluate", self.models, test)
        self.publish("published", student, self.old_student, metrics, test, TEST if test else VALIDATION)
        outputs = [stage.output for stage in self.made[start:]]
        self.stage("report", "report", outputs, [f"--run={self.root}"], seeded=False)

    def _arms(self, target: list[Path], frame_interval: float | None) -> dict[str, Path]:
        """Add the adaptations of further teachers, and return the teachers by arm."""
        teacher = self.plan.teacher
        models: dict[str, Path] = {}
        for arm, overlays in (("mean-teacher", teacher.mean_teacher), ("ca-hqp", teacher.ca_hqp)):
            if arm in self.plan.arms:
                configs = [*teacher.adapt, *overlays]
                models[arm] = self.adaptation(f"teacher-{arm}", configs, target, frame_interval)
        if "oracle" in self.plan.arms:
            configs = [*teacher.fit, *teacher.oracle]
            models["oracle"] = self.fit("teacher-oracle", configs, self.old_teacher, train=target)
        return models
