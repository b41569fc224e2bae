"""What a cycle is to do, read from YAML and checked whole before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from cahqp.errors import ConfigError
from cahqp.labels.views import unknown_view
from cahqp.runs import schema

SCENES = "scenes:"
ARMS = ("mean-teacher", "ca-hqp", "oracle")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Source:
    """Frames with labels. Each entry is a COCO file, or `scenes:NAME`.

    Attributes:
        train: What teacher and student learn from first, and what keeps them from forgetting.
        val: What models are selected on: other recordings than `train`.
    """

    train: list[str]
    val: list[str]


@dataclass(frozen=True)
class Target:
    """Frames of the new conditions.

    Attributes:
        train: What is adapted to and relabelled. Each entry is a folder of frames, a video, a COCO file whose labels
            are not read (except by the oracle), or `scenes:NAME`.
        test: COCO files or `scenes:NAME` of other recordings, opened by the evaluation alone. Default none: then the
            cycle is judged on `source.val`.
        frame_interval: Seconds between the frames taken from a video of `train`. Default none: all frames.
    """

    train: list[str]
    test: list[str] = field(default_factory=list)
    frame_interval: float | None = None


@dataclass(frozen=True)
class Teacher:
    """The large detector.

    Attributes:
        weights: A model file to start from. Default none: trained on the source with `fit`.
        fit: Configs of the training on the source; later ones are laid over earlier ones.
        adapt: Configs of the adaptation to the target.
        self_training: Configs of a training of the adapted teacher on its own labels of the target, and on the
            source. Default
            none.
        self_training_rounds: How often, each time on labels made anew. Default 1.
        mean_teacher: Configs laid over `adapt` for the arm mean-teacher.
        ca_hqp: Configs laid over `adapt` for the arm ca-hqp.
        oracle: Configs laid over `fit` for the arm oracle, which learns from the target's labels.
    """

    weights: str | None = None
    fit: list[str] = field(default_factory=list)
    adapt: list[str] = field(default_factory=list)
    self_training: list[str] = field(default_factory=list)
    self_training_rounds: int = 1
    mean_teacher: list[str] = field(default_factory=lambda: ["configs/overlays/mean_teacher.yaml"])
    ca_hqp: list[str] = field(default_factory=lambda: ["configs/overlays/ca_hqp.yaml"])
    oracle: list[str] = field(default_factory=lambda: ["configs/overlays/oracle.yaml"])


@dataclass(frozen=True)
class Student:
    """The small detector.

    Attributes:
        weights: The model file that runs at the edge now. Default none: trained on the source with `fit`.
        fit: Configs of the training on the source; later ones are laid over earlier ones.
        retrain: Configs of the training on pseudo-labels and source.
    """

    weights: str | None = None
    fit: list[str] = field(default_factory=list)
    retrain: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Relabel:
    """How detections become labels; see `cahqp relabel`.

    Attributes:
        threshold: Score in 0..1 from which a box is kept. Default none: the thresholds in the teacher's model file.
        ignore_share: From this share of the threshold on a box is neither object nor background. Default 0.6.
        temporal: Judge boxes by their tracks, where frames are close together. Default true.
        stationary_weight: What a score counts whose place is taken in most other frames of its recording. Default 0.5.
        weight_by_score: Boxes train by their confidence. Default false.
        views: Further views of each frame. Default none.
    """

    threshold: float | None = None
    ignore_share: float = 0.6
    temporal: bool = True
    stationary_weight: float = 0.5
    weight_by_score: bool = False
    views: list[str] = field(default_factory=list)

    def flags(self) -> list[str]:
        """Return the arguments of `cahqp relabel`."""
        given = [] if self.threshold is None else [f"--threshold={self.threshold}"]
        given += [f"--ignore_share={self.ignore_share}", f"--stationary_weight={self.stationary_weight}"]
        given += [f"--{name}=true" for name in ("temporal", "weight_by_score") if getattr(self, name)]
        return given + (["--views", *self.views] if self.views else [])


@dataclass(frozen=True)
class Plan:
    """One cycle. Paths are as on the command line: relative ones start at the working directory.

    Attributes:
        name: Names the output, `runs/<name>`.
        source: Labelled frames.
        target: Frames of the new conditions.
        teacher: The large detector.
        student: The small detector.
        seed: Seed of every stage. Default 0.
        scenes: Synthetic recordings to make first: name, and the arguments of `cahqp scenes`. Default none.
        relabel: How detections become labels.
        arms: Further teachers for comparison, of `mean-teacher`, `ca-hqp` and `oracle`. Default none.
    """

    name: str
    source: Source
    target: Target
    teacher: Teacher
    student: Student
    seed: int = 0
    scenes: dict[str, dict[str, Any]] = field(default_factory=dict)
    relabel: Relabel = field(default_factory=Relabel)
    arms: list[str] = field(default_factory=list)


def read_plan(path: Path, arms: Sequence[str] = ()) -> Plan:
    """Read and check a plan.

    Args:
        path: The YAML file.
        arms: Arms asked for beside the plan's own; they are added to it.

    Raises:
        ConfigError: Anything about it cannot be right. All problems come together.
    """
    problems: list[str] = []
    plan = schema.build(Plan, parse(Path(path)), "", problems)
    plan = replace(plan, arms=list(dict.fromkeys([*plan.arms, *arms])))
    told = [_subject(problem) for problem in problems]
    problems += [problem for problem in problems_of(plan) if not _subject(problem).startswith(tuple(told))]
    refuse(path, problems)
    return plan


def refuse(path: Path, problems: Sequence[str]) -> None:
    """Tell all problems of a plan together.

    Raises:
        ConfigError: There are some.
    """
    if problems:
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        message = f"{path} has {count}; nothing was started:\n{lines}"
        raise ConfigError(message)


def is_coco(entry: str) -> bool:
    """Say whether an entry carries labels in a file: synthetic recordings do."""
    return entry.startswith(SCENES) or entry.endswith(".json")


def _subject(problem: str) -> str:
    return problem.split(" ", 1)[0].rstrip(":")


def parse(path: Path) -> dict[str, Any]:
    """Return the mapping that a plan's file holds.

    Raises:
        ConfigError: It is missing, no YAML, or no mapping.
    """
    try:
        parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = f"The plan {path} does not exist. `configs/cycle/demo.yaml` is one to start from."
        raise ConfigError(message) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"{path} is not readable YAML: {error}"
        raise ConfigError(message) from error
    if not isinstance(parsed, dict):
        message = f"{path} is no plan: it must hold {', '.join(Plan.__dataclass_fields__)}."
        raise ConfigError(message)
    return parsed


def relabel_problems(relabel: Relabel) -> Iterator[str]:
    """Yield what cannot be right about how labels are made, a line each."""
    for name in ("threshold", "ignore_share", "stationary_weight"):
        value = getattr(relabel, name)
        if value is not None and not 0 <= value <= 1:
            yield f"relabel.{name} must be in 0..1, got {value}."
    yield from (f"relabel.views: {wrong}" for wrong in map(unknown_view, relabel.views) if wrong)


def problems_of(plan: Plan) -> Iterator[str]:
    """Yield what cannot be right about a plan, a line each."""
    if not NAME.fullmatch(plan.name):
        yield f"name must be letters, digits, `-`, `_` and `.`, got {plan.name!r}."
    if plan.seed < 0:
        yield f"seed must be 0 or more, got {plan.seed}."
    yield from relabel_problems(plan.relabel)
    if plan.target.frame_interval is not None and plan.target.frame_interval <= 0:
        yield f"target.frame_interval must be more than 0 seconds, got {plan.target.frame_interval}."
    yield from _scene_problems(plan)
    yield from _data_problems(plan)
    yield from _model_problems(plan)
    yield from _arm_problems(plan)


def _scene_problems(plan: Plan) -> Iterator[str]:
    for name, arguments in plan.scenes.items():
        if not NAME.fullmatch(name):
            yield f"scenes.{name} must be named with letters, digits, `-`, `_` and `.`."
        for own in {"output", "seed"} & arguments.keys():
            yield f"scenes.{name}.{own} is set by the cycle. Remove it."


def _data_problems(plan: Plan) -> Iterator[str]:
    entries = {
        "source.train": plan.source.train,
        "source.val": plan.source.val,
        "target.train": plan.target.train,
        "target.test": plan.target.test,
    }
    for where, given in entries.items():
        if not given and where != "target.test":
            yield f"{where} is empty: name at least one file, or `scenes:NAME`."
        for entry in given:
            yield from data_problems(plan, where, entry)
    for domain, held_out in (("source", "val"), ("target", "test")):
        for entry in sorted(set(entries[f"{domain}.train"]) & set(entries[f"{domain}.{held_out}"])):
            yield f"{domain}.{held_out} and {domain}.train both hold {entry}. Hold other recordings out."


def data_problems(plan: Plan, where: str, entry: str) -> Iterator[str]:
    """Yield what cannot be right about one entry of frames.

    Args:
        plan: Its scenes may be named.
        where: Dotted name of the list that the entry is in.
        entry: A file, a folder or `scenes:NAME`.
    """
    if entry.startswith(SCENES):
        if entry.removeprefix(SCENES) not in plan.scenes:
            yield schema.unknown(f"{where}: {entry}", entry, [f"{SCENES}{name}" for name in plan.scenes], "recording")
    elif not Path(entry).exists():
        yield f"{where}: {entry} does not exist."
    elif where != "target.train" and not is_coco(entry):
        yield f"{where}: {entry} must be a COCO file (.json) or `scenes:NAME`."


def _model_problems(plan: Plan) -> Iterator[str]:
    teacher, student = plan.teacher, plan.student
    for where, weights, fit in (
        ("teacher", teacher.weights, teacher.fit),
        ("student", student.weights, student.fit),
    ):
        if weights is None and not fit:
            yield f"{where} has neither weights nor fit: name a model file, or the configs that train one."
        if weights is not None and not Path(weights).is_file():
            yield f"{where}.weights: {weights} does not exist."
        yield from _missing(f"{where}.fit", fit)
    for where, configs in (("teacher.adapt", teacher.adapt), ("student.retrain", student.retrain)):
        if not configs:
            yield f"{where} is missing: name at least one config."
        yield from _missing(where, configs)
    yield from _missing("teacher.self_training", teacher.self_training)
    if teacher.self_training_rounds < 1:
        yield f"teacher.self_training_rounds must be at least 1, got {teacher.self_training_rounds}."
    if teacher.self_training_rounds > 1 and not teacher.self_training:
        yield "teacher.self_training_rounds is given without teacher.self_training: name its configs."


def _arm_problems(plan: Plan) -> Iterator[str]:
    for arm in plan.arms:
        if arm not in ARMS:
            yield schema.unknown(f"arms: {arm}", arm, ARMS, "arm")
    if "mean-teacher" in plan.arms:
        yield from _missing("teacher.mean_teacher", plan.teacher.mean_teacher)
    if "ca-hqp" in plan.arms:
        yield from _missing("teacher.ca_hqp", plan.teacher.ca_hqp)
    if "oracle" in plan.arms:
        yield from _missing("teacher.oracle", plan.teacher.oracle)
        if not plan.teacher.fit:
            yield "The arm oracle needs teacher.fit: the configs it trains with."
        for entry in plan.target.train:
            if not is_coco(entry):
                yield f"The arm oracle learns from the target's labels, and target.train: {entry} has none."


def _missing(where: str, configs: Sequence[str]) -> Iterator[str]:
    return (f"{where}: {config} does not exist." for config in configs if not Path(config).is_file())
