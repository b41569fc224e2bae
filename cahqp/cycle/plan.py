"""Cycle plans: the YAML schema of `cahqp cycle run`. A plan is checked completely before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from cahqp.errors import ConfigError
from cahqp.labels.calibration.curves import Method
from cahqp.labels.options import LabelOptions
from cahqp.runs.schema import ExistingFile, Name, Section, check_folder, parse, unknown, validate

SCENES = "scenes:"

Arm = Literal["mean-teacher", "ca-hqp", "oracle"]


def is_coco(entry: str) -> bool:
    """Return whether an entry of frames has a label file. Synthetic recordings do."""
    return entry.startswith(SCENES) or entry.endswith(".json")


def _check_entry(entry: str, info: ValidationInfo) -> str:
    scenes = info.context.get("scenes") if isinstance(info.context, Mapping) else None
    recordings = [f"{SCENES}{name}" for name in scenes] if isinstance(scenes, Mapping) else []
    if entry.startswith(SCENES):
        if entry not in recordings:
            raise ValueError(unknown(entry, entry, recordings, "recording"))
    elif not Path(entry).exists():
        message = f"{entry} does not exist."
        raise ValueError(message)
    return entry


def _check_coco(entry: str) -> str:
    if not is_coco(entry):
        message = f"{entry} must be a COCO file (.json) or `scenes:NAME`."
        raise ValueError(message)
    return entry


FrameEntry = Annotated[str, AfterValidator(_check_entry)]
"""A folder of frames, a video, a COCO file, or `scenes:NAME`."""

CocoEntry = Annotated[FrameEntry, AfterValidator(_check_coco)]
"""A COCO file, or `scenes:NAME`."""

Configs = Annotated[list[ExistingFile], Field(min_length=1)]
"""Configs of a training; later ones are laid over earlier ones."""

Seconds = Annotated[float, Field(gt=0)]


def _check_scenes(scenes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    reserved = [f"--{name}.{key}" for name, options in scenes.items() for key in ("output", "seed") if key in options]
    if reserved:
        raise ValueError("\n".join(f"{key} is set by the cycle. Remove it." for key in reserved))
    return scenes


Scenes = Annotated[dict[Name, dict[str, Any]], AfterValidator(_check_scenes)]
"""Options of `cahqp scenes` by the name of the recordings."""


def _check_disjoint(train: Sequence[str], held_out: Sequence[str], name: str) -> None:
    shared = sorted(set(train) & set(held_out))
    if shared:
        message = f"--{name} and --train both contain {', '.join(shared)}. Hold out other recordings."
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled frames.

    Attributes:
        train: Training frames of the source models, and of later trainings against forgetting.
        val: Frames of other recordings, for model selection.
    """

    train: Annotated[list[CocoEntry], Field(min_length=1)]
    val: Annotated[list[CocoEntry], Field(min_length=1)]

    def __post_init__(self) -> None:
        _check_disjoint(self.train, self.val, "val")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Frames of the new conditions.

    Attributes:
        train: Frames to adapt to and to relabel. Labels of COCO files are read by the oracle only.
        test: Labelled frames of other recordings, read by the evaluation only. Default: `source.val` decides.
        frame_interval: Seconds between the frames taken from a video of `train`. Default: all frames.
    """

    train: Annotated[list[FrameEntry], Field(min_length=1)]
    test: list[CocoEntry] = field(default_factory=list)
    frame_interval: Seconds | None = None

    def __post_init__(self) -> None:
        _check_disjoint(self.train, self.test, "test")


@dataclass(frozen=True, kw_only=True)
class Model:
    """Start of a detector.

    Attributes:
        weights: Model file. Default: the detector is trained on the source with `fit`.
        fit: Configs of the training on the source.
    """

    weights: ExistingFile | None = None
    fit: list[ExistingFile] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.weights is None and not self.fit:
            message = "neither weights nor fit is given. Name a model file, or the configs that train one."
            raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class Teacher(Model):
    """The large detector.

    Attributes:
        adapt: Configs of the adaptation to the target.
        self_training: Configs of the self-training rounds: trainings of the adapted teacher on its own labels of the
            target, and on the source. Default: no self-training.
        self_training_rounds: Number of self-training rounds. Each one relabels the target first.
        mean_teacher: Configs laid over `adapt` for the arm mean-teacher.
        ca_hqp: Configs laid over `adapt` for the arm ca-hqp.
        oracle: Configs laid over `fit` for the arm oracle, which trains on target labels.
    """

    adapt: Configs
    self_training: list[ExistingFile] = field(default_factory=list)
    self_training_rounds: Annotated[int, Field(ge=1, le=100)] = 1
    mean_teacher: list[str] = field(default_factory=lambda: ["configs/overlays/mean_teacher.yaml"])
    ca_hqp: list[str] = field(default_factory=lambda: ["configs/overlays/ca_hqp.yaml"])
    oracle: list[str] = field(default_factory=lambda: ["configs/overlays/oracle.yaml"])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.self_training_rounds > 1 and not self.self_training:
            message = f"--self-training is missing: name the configs of the {self.self_training_rounds} rounds."
            raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class Student(Model):
    """The small detector. Its `weights` are the model that runs at the edge.

    Attributes:
        retrain: Configs of the training on pseudo-labels and source.
    """

    retrain: Configs


@dataclass(frozen=True, kw_only=True)
class Relabel(LabelOptions):
    """Rules by which detections become labels, with the defaults of a plan; see `cahqp relabel --help`."""

    ignore_share: float = 0.6
    temporal: bool = True
    stationary_weight: float = 0.5


@dataclass(frozen=True, kw_only=True)
class CalibrationRules:
    """Calibration of a teacher's scores on `source.val` before it labels.

    Attributes:
        method: Form of the curves.
        uncalibrated: Classes with too few objects in `source.val`. They share one curve.
        target_precision: Precision, 0..1, that the thresholds reach on `source.val`. Default: the best F1, if views or
            teachers are fused; otherwise the thresholds of the model.
        dynamic: Multiply the threshold of a class by the ratio, 0.5 to 1, of its mean scores on target and
            `source.val`.
    """

    method: Method = "isotonic"
    uncalibrated: list[str] = field(default_factory=list)
    target_precision: Annotated[float, Field(ge=0, le=1)] | None = None
    dynamic: bool = False

    def calibrate_flags(self, rules: LabelOptions) -> list[str]:
        """Return the options of `cahqp calibrate`, for labels by these rules."""
        lists = ["--views", *rules.views] if rules.views else []
        lists += ["--uncalibrated", *self.uncalibrated] if self.uncalibrated else []
        return [f"--method={self.method}", f"--nms-iou={rules.nms_iou}", *lists]

    def relabel_flags(self) -> list[str]:
        """Return the options of `cahqp relabel` besides `--calibration`."""
        precision = [] if self.target_precision is None else [f"--target-precision={self.target_precision}"]
        return [*precision, *(["--dynamic"] if self.dynamic else [])]


def check_views(rules: LabelOptions, calibration: CalibrationRules | None, val: Sequence[str]) -> None:
    """Check that thresholds fit the scores of the labelling.

    Raises:
        ConfigError: Views are fused and nothing sets thresholds for fused scores, or `source.val` is not one file.
    """
    if calibration is not None and len(val) != 1:
        message = f"--calibrate needs one file in source.val, got {len(val)}. Join them first."
        raise ConfigError(message)
    if rules.views and calibration is None and rules.threshold is None and rules.top_share is None:
        message = (
            "--relabel.views changes the scores, so the thresholds of the model do not fit them. Add `calibrate: {}` "
            "to the plan, or set relabel.threshold."
        )
        raise ConfigError(message)


def _check_arms(arms: list[str], info: ValidationInfo) -> list[str]:
    """Check the files of further teachers against the sections before `arms`, as far as they are valid."""
    teacher, target = info.data.get("teacher"), info.data.get("target")
    problems = []
    if teacher is not None:
        overlays = {"mean-teacher": teacher.mean_teacher, "ca-hqp": teacher.ca_hqp, "oracle": teacher.oracle}
        missing = [(arm, config) for arm in arms for config in overlays[arm] if not Path(config).is_file()]
        problems += [f"{arm} needs {config}, which does not exist." for arm, config in missing]
        if "oracle" in arms and not teacher.fit:
            problems.append("oracle needs teacher.fit: the configs it trains with.")
    if target is not None and "oracle" in arms:
        unlabelled = [entry for entry in target.train if not is_coco(entry)]
        problems += [f"oracle trains on target labels, and target.train: {entry} has none." for entry in unlabelled]
    if problems:
        raise ValueError("\n".join(problems))
    return arms


@dataclass(frozen=True, kw_only=True)
class BasePlan:
    """Keys that every plan has. Relative paths start at the working directory.

    Attributes:
        name: Name of the output, `runs/<name>`.
        source: Labelled frames.
        teacher: The large detector. Every adaptation starts from its weights here.
        student: The small detector.
        seed: Seed of every stage.
        scenes: Synthetic recordings to render first.
        relabel: Rules by which detections become labels.
        calibrate: Calibration of the scores before each labelling. Default: none.
    """

    name: Name
    source: Section[Source]
    teacher: Section[Teacher]
    student: Section[Student]
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    scenes: Scenes = field(default_factory=dict)
    relabel: Section[Relabel] = field(default_factory=Relabel)
    calibrate: Section[CalibrationRules] | None = None

    def __post_init__(self) -> None:
        check_views(self.relabel, self.calibrate, self.source.val)


@dataclass(frozen=True, kw_only=True)
class CyclePlan(BasePlan):
    """One cycle.

    Attributes:
        target: Frames of the new conditions.
        arms: Additional teachers for comparison.
    """

    target: Section[Target]
    arms: Annotated[list[Arm], AfterValidator(_check_arms)] = field(default_factory=list)


def read_plan(path: Path, arms: Sequence[str] = ()) -> CyclePlan:
    """Read and check a plan.

    Args:
        path: The YAML file.
        arms: Arms to add to the plan's own.

    Raises:
        ConfigError: The plan is invalid. The message lists all problems.
    """
    values = parse(path)
    check_folder(path, values)
    planned = values.get("arms", [])
    if arms and isinstance(planned, list):
        values["arms"] = list(dict.fromkeys([*planned, *arms]))
    return validate(CyclePlan, values, path)
