"""Benchmark plans: the YAML schema of `cahqp benchmark adapt`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cahqp.benchmarks.adapt.configs import count_steps
from cahqp.cycle.plan import Relabel
from cahqp.runs.schema import Section

SCENES, DATA = "scenes:", "data:"
SOURCE_ONLY, MEAN_TEACHER, CA_HQP = "source-only", "mean-teacher", "ca-hqp"
SOURCE_CONTINUED, CONVERGED = "source-continued", "oracle-converged"
ORACLES = (CONVERGED, "oracle")
"""The first one in a plan is the upper end of the gap."""

BACKBONE = "model.detector.init_args.backbone_weights"


@dataclass(frozen=True)
class Arm:
    """One way to obtain a target teacher from the source teacher.

    Attributes:
        kind: `adapt` without target labels, `oracle` with them, `none` for the source teacher unchanged.
        configs: Laid over `teacher.adapt`, or over `teacher.oracle` if `kind` is `oracle`.
        set: `cahqp fit` options laid over the configs, named without the dashes.
        steps: Training steps as a multiple of the plan's adaptation steps.
        ground_truth: Option that receives the labelled target files, for upper bounds that read target labels.
        self_training: Whether the plan's self-training rounds follow the adaptation. Oracles have none.
        relabel: Label options for this arm's student. Default: the plan's.
    """

    kind: str = "adapt"
    configs: list[str] = field(default_factory=list)
    set: dict[str, Any] = field(default_factory=dict)
    steps: float = 1.0
    ground_truth: str | None = None
    self_training: bool = True
    relabel: Section[Relabel] | None = None


ARMS: dict[str, Arm] = {
    SOURCE_ONLY: Arm("none"),
    SOURCE_CONTINUED: Arm(configs=["configs/overlays/source_continued.yaml"], self_training=False),
    MEAN_TEACHER: Arm(configs=["configs/overlays/mean_teacher.yaml"]),
    "alignment-only": Arm(configs=["configs/overlays/alignment_only.yaml"], self_training=False),
    CA_HQP: Arm(configs=["configs/overlays/ca_hqp.yaml"]),
    "oracle": Arm("oracle"),
    CONVERGED: Arm("oracle"),
}


@dataclass(frozen=True)
class DomainFrames:
    """Frames of one domain. Each entry is a COCO file, `scenes:NAME`, or `data:FILE` below the folder of --data.

    Attributes:
        train: Training frames. Target labels are read by oracles only.
        test: Other recordings, opened by the evaluation only.
        val: Source frames that fix the thresholds. The target has none.
    """

    train: list[str]
    test: str
    val: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TeacherConfigs:
    """Configs of the teacher's trainings; later ones are laid over earlier ones.

    Attributes:
        fit: Training on the source.
        adapt: Adaptation to the target.
        oracle: Training on the target labels.
        self_training: Training of the adapted teacher on its own target labels. Default: none.
        self_training_rounds: Rounds of relabelling and self-training, at least 1.
        weights: Existing source model file, shared by all seeds; otherwise each seed trains its own with `fit`.
        set: Options of `fit`, named without the dashes.
    """

    fit: list[str]
    adapt: list[str]
    oracle: list[str] = field(default_factory=list)
    self_training: list[str] = field(default_factory=list)
    self_training_rounds: int = 1
    weights: str | None = None
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudentConfigs:
    """Configs of the student's trainings; later ones are laid over earlier ones.

    Attributes:
        fit: Training on the source.
        retrain: Training on pseudo-labels and source.
        weights: Existing source model file, shared by all seeds; otherwise each seed trains its own with `fit`.
        set: Options of `fit`, named without the dashes.
    """

    fit: list[str]
    retrain: list[str]
    weights: str | None = None
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepCost:
    """Measured seconds on two CPU cores, for the estimate of a dry run.

    Attributes:
        adapt: One adaptation step.
        labelled: One teacher step on labels.
        student: One student step.
        frame: Detection in one frame.
        scene: Rendering of one synthetic frame.
        start: Start-up of a command.
    """

    adapt: float = 0.85
    labelled: float = 0.35
    student: float = 0.25
    frame: float = 0.03
    scene: float = 0.03
    start: float = 8.0


@dataclass(frozen=True)
class BenchmarkPlan:
    """One benchmark: a domain shift, arms and seeds.

    Attributes:
        name: Name of the output folder and of the section in the docs.
        about: Description above the table, one sentence.
        shift: `reported`, or `development` if settings are chosen on its figures.
        seeds: Different integers >= 0. Each repeats all stages with its own scenes, weights and order.
        source: Labelled frames.
        target: Frames of the new conditions.
        teacher: Large detector.
        student: Small detector.
        arms: Names of built-in arms.
        students: Arms whose labels retrain a student.
        variants: Further arms by name.
        scenes: Synthetic recordings: name, and options of `cahqp scenes`. Default seed: the run's.
        epochs: Epochs of an adaptation, at least 1.
        batches: Steps per epoch of an adaptation, at least 1.
        converged: Steps of `oracle-converged` as a multiple of the adaptation steps, above 0.
        relabel: Label options for the students.
        classes: Classes whose AP50 is shown beside the mean.
        set: Options of every `cahqp fit`, named without the dashes.
        backbone: Whether the source teacher needs --backbone, a file of pretrained weights.
        cost: Seconds for the estimate.
    """

    name: str
    about: str
    seeds: list[int]
    source: DomainFrames
    target: DomainFrames
    teacher: TeacherConfigs
    student: StudentConfigs
    arms: list[str]
    shift: str = "reported"
    students: list[str] = field(default_factory=list)
    variants: dict[str, Arm] = field(default_factory=dict)
    scenes: dict[str, dict[str, Any]] = field(default_factory=dict)
    epochs: int = 10
    batches: int = 25
    converged: float = 4.0
    relabel: Section[Relabel] = field(default_factory=Relabel)
    classes: list[str] = field(default_factory=list)
    set: dict[str, Any] = field(default_factory=dict)
    backbone: bool = False
    cost: StepCost = field(default_factory=StepCost)

    @property
    def arms_by_name(self) -> dict[str, Arm]:
        """All arms in table order. `oracle` and `source-continued` train as long as adaptation and self-training."""
        matched = 1 + self.self_training_steps / (self.epochs * self.batches)
        steps = {CONVERGED: self.converged, "oracle": matched, SOURCE_CONTINUED: matched}
        arms = ARMS | {name: replace(ARMS[name], steps=factor) for name, factor in steps.items()}
        return {name: arms.get(name) or self.variants[name] for name in [*self.arms, *self.variants]}

    @property
    def self_training_steps(self) -> int:
        """Steps of all self-training rounds together."""
        configs = self.teacher.self_training
        return self.teacher.self_training_rounds * count_steps(configs) if configs else 0

    def self_training_rounds(self, arm: Arm) -> int:
        """Return the number of self-training rounds of an arm."""
        enabled = arm.kind == "adapt" and arm.self_training and self.teacher.self_training
        return self.teacher.self_training_rounds if enabled else 0

    def entries(self) -> Iterator[tuple[str, str]]:
        """Yield the plan key and the value of every entry of frames."""
        for domain, frames in (("source", self.source), ("target", self.target)):
            yield from ((f"{domain}.{role}", e) for role in ("train", "val") for e in getattr(frames, role))
            yield f"{domain}.test", frames.test

    def with_data(self, folder: Path) -> BenchmarkPlan:
        """Return the plan with every `data:FILE` replaced by the path below a folder."""

        def locate(entry: str) -> str:
            return str(folder / entry.removeprefix(DATA)) if entry.startswith(DATA) else entry

        source, target = (
            DomainFrames([*map(locate, frames.train)], locate(frames.test), [*map(locate, frames.val)])
            for frames in (self.source, self.target)
        )
        return replace(self, source=source, target=target)

    def with_arms(self, names: Sequence[str]) -> BenchmarkPlan:
        """Return the plan with the named arms and `source-only`, the baseline of every gain."""
        return replace(
            self,
            arms=[arm for arm in self.arms if arm in names or arm == SOURCE_ONLY],
            variants={name: arm for name, arm in self.variants.items() if name in names},
            students=[arm for arm in self.students if arm in names],
        )
