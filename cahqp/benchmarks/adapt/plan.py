"""Benchmark plans: the YAML schema of `cahqp benchmark adapt`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from cahqp.cycle.plan import CalibrationRules, CocoEntry, Model, Relabel, Student, Teacher
from cahqp.cycle.training_steps import count_steps, images_per_step
from cahqp.errors import ConfigError
from cahqp.runs.schema import ExistingFile, Name, Section

SOURCE_ONLY, MEAN_TEACHER, CA_HQP = "source-only", "mean-teacher", "ca-hqp"
ZERO_SHOT, EXPERT = "zero-shot", "expert"
SOURCE_CONTINUED, RESTYLE_ONLY = "source-continued", "restyle-only"
ORACLE, CONVERGED = "oracle", "oracle-converged"
ORACLES = (CONVERGED, ORACLE)
"""The first one in a plan is the upper end of the gap."""

BACKBONE = "model.detector.init_args.backbone_weights"
START = "model.detector.init_args.model"

Count = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(gt=0)]
FitOptions = dict[str, Any]
"""Options of `cahqp fit`, named without the dashes."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to obtain a target teacher from the source teacher.

    Attributes:
        kind: `adapt` without target labels, `oracle` with them, `none` for the source teacher unchanged, `start` for
            the model of `teacher.start` unchanged.
        begin: Weights that it starts from: of the `source` teacher, or of `teacher.start`.
        adaptation: Whether `teacher.adapt` precedes the self-training rounds.
        configs: Laid over `teacher.adapt`, or over `teacher.oracle` if `kind` is `oracle`.
        set: Options laid over the configs.
        steps: Training steps as a multiple of the plan's adaptation steps.
        ground_truth: Option that receives the labelled target files, for upper bounds that read target labels.
        self_training: Whether the plan's self-training rounds follow the adaptation. Oracles have none.
        source_images: Whether it trains on source images alone; then only these count towards its steps.
        expert: Fuse the boxes of the plan's `expert` in the labels of self-training rounds and of the student.
        relabel: Label options for this arm. Default: the plan's.
        calibrate: Calibration before this arm's labelling. Default: the plan's.
    """

    kind: Literal["adapt", "oracle", "none", "start"] = "adapt"
    begin: Literal["source", "start"] = "source"
    adaptation: bool = True
    configs: list[ExistingFile] = field(default_factory=list)
    set: FitOptions = field(default_factory=dict)
    steps: Factor = 1.0
    ground_truth: str | None = None
    self_training: bool = True
    source_images: bool = False
    expert: bool = False
    relabel: Section[Relabel] | None = None
    calibrate: Section[CalibrationRules] | None = None

    def __post_init__(self) -> None:
        if not self.adaptation and (self.kind != "adapt" or not self.self_training):
            message = "--adaptation: false leaves no training. Use it with kind: adapt and self_training: true."
            raise ConfigError(message)


ARMS: dict[str, Arm] = {
    ZERO_SHOT: Arm(kind="start"),
    SOURCE_ONLY: Arm(kind="none"),
    SOURCE_CONTINUED: Arm(configs=["configs/overlays/source_continued.yaml"], self_training=False, source_images=True),
    RESTYLE_ONLY: Arm(configs=["configs/overlays/restyle_only.yaml"], self_training=False, source_images=True),
    MEAN_TEACHER: Arm(configs=["configs/overlays/mean_teacher.yaml"]),
    "alignment-only": Arm(configs=["configs/overlays/alignment_only.yaml"], self_training=False),
    CA_HQP: Arm(configs=["configs/overlays/ca_hqp.yaml"]),
    EXPERT: Arm(configs=["configs/overlays/mean_teacher.yaml"], expert=True),
    ORACLE: Arm(kind="oracle"),
    CONVERGED: Arm(kind="oracle"),
}


@dataclass(frozen=True, kw_only=True)
class TargetFrames:
    """Frames of the new conditions. An entry is a COCO file, `scenes:NAME`, or `data:FILE` below the folder of --data.

    Attributes:
        train: Frames to adapt to. Their labels are read by oracles only.
        test: Other recordings, opened by the evaluation only.
    """

    train: Annotated[list[CocoEntry], Field(min_length=1)]
    test: CocoEntry


@dataclass(frozen=True, kw_only=True)
class SourceFrames(TargetFrames):
    """Labelled frames.

    Attributes:
        val: Frames that fix the thresholds.
    """

    val: Annotated[list[CocoEntry], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class BenchmarkModel(Model):
    """Start of a detector. Its `weights` are shared by all seeds; otherwise each seed trains its own.

    Attributes:
        start: Configs of a `fit` without steps that makes a model file of the published model in --start. `fit`
            continues from it. Default: `fit` starts from random weights.
        set: Options of the first training: `start`, or `fit` without it.
        backbone: Whether the first training needs --backbone, a file of pretrained weights.
    """

    start: list[ExistingFile] = field(default_factory=list)
    set: FitOptions = field(default_factory=dict)
    backbone: bool = False

    def __post_init__(self) -> None:
        if self.weights is not None and self.start:
            message = "weights and start are both given. Keep one of them."
            raise ConfigError(message)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class BenchmarkTeacher(BenchmarkModel, Teacher):
    """Large detector.

    Attributes:
        oracle: Configs of the training on target labels.
    """

    oracle: list[ExistingFile] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class StudentRun:
    """One training of an arm's student.

    Attributes:
        targets: `hard`: pseudo-labels; `soft`: the teacher's soft labels of views, without pseudo-labels; `combined`:
            both. Each also trains on the source.
        steps: Training steps.
    """

    steps: Count
    targets: Literal["hard", "soft", "combined"] = "hard"


@dataclass(frozen=True, kw_only=True)
class BenchmarkStudent(BenchmarkModel, Student):
    """Small detector.

    Attributes:
        distil: Configs of a training on soft labels.
        runs: Further trainings of each arm's student by name, from the same weights. An oracle, which has true labels,
            takes those with `targets: hard`.
    """

    distil: list[ExistingFile] = field(default_factory=list)
    runs: dict[Name, Section[StudentRun]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.distil and any(run.targets != "hard" for run in self.runs.values()):
            message = "--distil is missing: name the configs of the training on soft labels."
            raise ConfigError(message)

    def runs_of(self, arm: Arm) -> dict[str, StudentRun]:
        """Return the further trainings of an arm's student by name; none for labels of the source teacher."""
        return (
            {}
            if arm.kind == "none"
            else {name: run for name, run in self.runs.items() if arm.kind != "oracle" or run.targets == "hard"}
        )


@dataclass(frozen=True, kw_only=True)
class Expert(BenchmarkModel):
    """Second detector. Its boxes are fused with the teacher's; the scores are calibrated on `source.val`.

    Attributes:
        adapt: Configs of its adaptation to the target. Default: none.
    """

    adapt: list[ExistingFile] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Seconds of one CPU core, for the estimate of a dry run. Defaults: AMD EPYC, the minutes of synthetic-night-long.

    Attributes:
        adapt: One adaptation step.
        labelled: One teacher step on eight labelled images.
        student: One student step on eight images.
        expert: One step of the expert on eight labelled images.
        frame: Detection in one frame.
        scene: Rendering of one synthetic frame.
        start: Start-up of a command.
    """

    adapt: float = 0.7
    labelled: float = 0.39
    student: float = 0.25
    expert: float = 0.7
    frame: float = 0.03
    scene: float = 0.03
    start: float = 8.0


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """One benchmark: a domain shift, arms and seeds.

    Attributes:
        name: Name of the output folder and of the section in the docs.
        about: Description above the table, one sentence.
        shift: `development` if settings are chosen by its figures, otherwise `reported`.
        seeds: Different seeds. Each repeats all stages with its own scenes, weights and order.
        source: Labelled frames.
        target: Frames of the new conditions.
        teacher: Large detector.
        student: Small detector.
        arms: Names of built-in arms.
        students: Arms whose labels retrain a student.
        variants: Further arms by name.
        scenes: Synthetic recordings: name, and options of `cahqp scenes`. Default seed: the run's.
        epochs: Epochs of an adaptation.
        batches: Steps per epoch of an adaptation.
        converged: Steps of `oracle-converged` as a multiple of the adaptation steps.
        relabel: Label options for the students.
        calibrate: Calibration of the scores before each labelling. Arms with `expert` always have one.
        classes: Classes whose AP50 is shown beside the mean.
        min_objects: Smallest number of objects of a class in a test set; means leave out classes with fewer.
        margin: Difference in AP50, 0..1, within which two arms count as equivalent.
        set: Options of every `cahqp fit`.
        expert: Second detector, for arms with `expert`.
        cost: Seconds for the estimate.
    """

    name: Name
    about: str
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    source: SourceFrames
    target: TargetFrames
    teacher: Section[BenchmarkTeacher]
    student: Section[BenchmarkStudent]
    arms: list[str]
    shift: Literal["reported", "development"] = "reported"
    students: list[str] = field(default_factory=list)
    variants: dict[str, Arm] = field(default_factory=dict)
    scenes: dict[str, dict[str, Any]] = field(default_factory=dict)
    epochs: Count = 10
    batches: Count = 25
    converged: Factor = 4.0
    relabel: Section[Relabel] = field(default_factory=Relabel)
    calibrate: Section[CalibrationRules] | None = None
    classes: list[str] = field(default_factory=list)
    min_objects: Count = 10
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    set: FitOptions = field(default_factory=dict)
    expert: Section[Expert] | None = None
    cost: StepCost = field(default_factory=StepCost)

    @property
    def known_arms(self) -> dict[str, Arm]:
        """Built-in arms and variants. Bounds train on as many images as adaptation and self-training together."""
        names = (SOURCE_CONTINUED, RESTYLE_ONLY, ORACLE) if self.teacher.oracle else (SOURCE_CONTINUED, RESTYLE_ONLY)
        steps = {CONVERGED: self.converged} | {name: self._matched_steps(ARMS[name]) for name in names}
        configs = {MEAN_TEACHER: self.teacher.mean_teacher, CA_HQP: self.teacher.ca_hqp}
        arms = ARMS | {name: replace(ARMS[name], steps=factor) for name, factor in steps.items()}
        return (
            arms | {name: replace(ARMS[name], configs=overlays) for name, overlays in configs.items()} | self.variants
        )

    @property
    def arms_by_name(self) -> dict[str, Arm]:
        """Arms of the plan in table order."""
        known = self.known_arms
        return {name: known[name] for name in [*self.arms, *self.variants]}

    @property
    def self_training_steps(self) -> int:
        """Steps of all self-training rounds together."""
        configs = self.teacher.self_training
        return self.teacher.self_training_rounds * count_steps(configs) if configs else 0

    def _matched_steps(self, arm: Arm) -> float:
        """Return the steps at which an arm has seen as many images as adaptation and self-training."""
        per_step = sum(images_per_step(self.teacher.adapt, self.set))
        images = per_step * self.epochs * self.batches
        if self.self_training_steps:
            images += images_per_step(self.teacher.self_training, self.set)[0] * self.self_training_steps
        own = self.teacher.oracle if arm.kind == "oracle" else self.teacher.adapt
        return images / (images_per_step(own, self.set)[0] * self.epochs * self.batches)

    @property
    def models(self) -> dict[str, BenchmarkModel]:
        """Sections of detectors by key."""
        sections: dict[str, BenchmarkModel | None] = {
            "teacher": self.teacher, "student": self.student, "expert": self.expert,
        }  # fmt: skip
        return {key: section for key, section in sections.items() if section is not None}

    def self_training_rounds(self, arm: Arm) -> int:
        """Return the number of self-training rounds of an arm."""
        enabled = arm.kind == "adapt" and arm.self_training and self.teacher.self_training
        return self.teacher.self_training_rounds if enabled else 0

    def with_arms(self, names: Sequence[str]) -> BenchmarkPlan:
        """Return the plan with the named arms and `source-only`, the baseline of every gain."""
        return replace(
            self,
            arms=[arm for arm in self.arms if arm in names or arm == SOURCE_ONLY],
            variants={name: arm for name, arm in self.variants.items() if name in names},
            students=[arm for arm in self.students if arm in names],
        )
