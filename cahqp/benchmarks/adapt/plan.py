"""What a benchmark is to compare, read from YAML and checked whole before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from cahqp.benchmarks.adapt.configs import steps_of
from cahqp.cycle.plan import Relabel, relabel_problems
from cahqp.errors import ConfigError
from cahqp.runs import schema
from cahqp.scenes.write import ScenesSettings

SCENES, DATA = "scenes:", "data:"
SOURCE_ONLY, MEAN_TEACHER, CA_HQP = "source-only", "mean-teacher", "ca-hqp"
SOURCE_CONTINUED, CONVERGED = "source-continued", "oracle-converged"
ORACLES = (CONVERGED, "oracle")
"""The first that was run is the end of the gap."""

BACKBONE = "model.detector.init_args.backbone_weights"


@dataclass(frozen=True)
class Arm:
    """One way to come from the source's teacher to a teacher for the target.

    Attributes:
        kind: `adapt`, without target labels; `oracle`, with them; `none`, the source's teacher as it is.
        configs: Laid over the plan's `teacher.adapt`; an oracle has configs of its own.
        set: Settings of `cahqp fit` laid over the configs, by their flag without the dashes.
        steps: Steps, as a multiple of the plan's; `oracle` and `source-continued` make those of the refits, too.
        ground_truth: Setting that gets the target's labelled files, for a ceiling that is told more than an
            adaptation may be.
        self_training: Whether the plan's `teacher.self_training` follows its adaptation; an oracle's training has none.
        relabel: How this arm's detections become its student's labels, where not as the plan says.
    """

    kind: str = "adapt"
    configs: list[str] = field(default_factory=list)
    set: dict[str, Any] = field(default_factory=dict)
    steps: float = 1.0
    ground_truth: str | None = None
    self_training: bool = True
    relabel: Relabel | None = None


ARMS: dict[str, Arm] = {
    SOURCE_ONLY: Arm("none"),
    SOURCE_CONTINUED: Arm(configs=["configs/overlays/source_continued.yaml"], self_training=False),
    MEAN_TEACHER: Arm(configs=["configs/overlays/mean_teacher.yaml"]),
    "alignment-only": Arm(configs=["configs/overlays/alignment_only.yaml"], self_training=False),
    CA_HQP: Arm(configs=["configs/overlays/ca_hqp.yaml"]),
    "oracle": Arm("oracle"),
    CONVERGED: Arm("oracle"),  # a plan says for how many steps
}


@dataclass(frozen=True)
class Domain:
    """Frames of one domain. An entry is a COCO file, `scenes:NAME`, or `data:FILE` below the folder of --data.

    Attributes:
        train: Trained on. Of the target, the oracles alone read the labels.
        test: Other recordings, opened by the evaluation alone.
        val: Of the source: what fixes the thresholds. Of the target there is none.
    """

    train: list[str]
    test: str
    val: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Model:
    """The configs of a detector; later ones lie over earlier ones.

    Attributes:
        fit: Of its training on the source.
        then: Of what follows: the teacher's adaptation, the student's retraining.
        oracle: Of the teacher's training on the target's labels.
        self_training: Of the adapted teacher's training on its own labels of the target; none where there is none.
        self_training_rounds: How often, each time on labels made anew.
        weights: Model file that `fit` made before, for all seeds: then they differ in the target and what follows.
        set: Settings of `fit`, by their flag without the dashes.
    """

    fit: list[str]
    then: list[str]
    oracle: list[str] = field(default_factory=list)
    self_training: list[str] = field(default_factory=list)
    self_training_rounds: int = 1
    weights: str | None = None
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """Measured seconds on two CPU cores, for the estimate of a dry run.

    Attributes:
        adapt: Of a step of adaptation.
        labelled: Of a step of the teacher on labels.
        student: Of a step of the student.
        frame: Of relabelling or measuring one frame with one model.
        scene: Of making one synthetic frame.
        start: Of any command before it works.
    """

    adapt: float = 0.85
    labelled: float = 0.35
    student: float = 0.25
    frame: float = 0.03
    scene: float = 0.03
    start: float = 8.0


@dataclass(frozen=True)
class Plan:
    """One benchmark: a shift, arms and seeds.

    Attributes:
        name: Names the folder of its tables, and its section in the docs.
        about: A sentence for the table's head.
        shift: `reported`, or `development`: settings are chosen on it.
        seeds: Each is a run of everything, with other scenes, weights and order.
        source: Labelled frames.
        target: Frames of the new conditions.
        teacher: The large detector.
        student: The small detector.
        arms: Names of the arms.
        students: Arms whose labels retrain the student.
        variants: Further arms by name.
        scenes: Synthetic recordings: name, and arguments of `cahqp scenes`; the run's seed where they name none.
        epochs: Epochs of an adaptation.
        batches: Steps in an epoch of an adaptation.
        converged: Steps of `oracle-converged`, as a multiple.
        relabel: How a teacher's detections become its student's labels.
        classes: Classes whose AP50 stands beside the mean.
        set: Settings of every `cahqp fit`, by their flag without the dashes.
        backbone: The teacher's training on the source needs --backbone, a file of pretrained weights.
        cost: For the estimate.
    """

    name: str
    about: str
    seeds: list[int]
    source: Domain
    target: Domain
    teacher: Model
    student: Model
    arms: list[str]
    shift: str = "reported"
    students: list[str] = field(default_factory=list)
    variants: dict[str, Arm] = field(default_factory=dict)
    scenes: dict[str, dict[str, Any]] = field(default_factory=dict)
    epochs: int = 10
    batches: int = 25
    converged: float = 4.0
    relabel: Relabel = field(default_factory=Relabel)
    classes: list[str] = field(default_factory=list)
    set: dict[str, Any] = field(default_factory=dict)
    backbone: bool = False
    cost: Cost = field(default_factory=Cost)

    @property
    def chosen(self) -> dict[str, Arm]:
        """The arms by name, in the table's order; those that bound the others make as many steps, refits included."""
        matched = 1 + self.self_training_steps / (self.epochs * self.batches)
        steps = {CONVERGED: self.converged, "oracle": matched, SOURCE_CONTINUED: matched}
        arms = ARMS | {name: replace(ARMS[name], steps=factor) for name, factor in steps.items()}
        return {name: arms.get(name) or self.variants[name] for name in [*self.arms, *self.variants]}

    @property
    def self_training_steps(self) -> int:
        """Steps of all refits together."""
        return (
            self.teacher.self_training_rounds * steps_of(self.teacher.self_training)
            if self.teacher.self_training
            else 0
        )

    def self_training_rounds(self, arm: Arm) -> int:
        """Return how often an arm's teacher is trained on its own labels after its adaptation."""
        return (
            self.teacher.self_training_rounds
            if arm.kind == "adapt" and arm.self_training and self.teacher.self_training
            else 0
        )


def read_plan(
    path: Path,
    seeds: Sequence[int] = (),
    arms: Sequence[str] = (),
    data: Path | None = None,
    backbone: Path | None = None,
) -> Plan:
    """Read and check a plan.

    Args:
        path: The YAML file.
        seeds: In the place of the plan's own, where given.
        arms: Arms and variants that are kept, where given.
        data: The folder that stands for `data:`.
        backbone: Pretrained weights of the teacher's backbone, for plans that need them.

    Raises:
        ConfigError: Anything about it cannot be right. All problems come together.
    """
    problems: list[str] = []
    plan = schema.build(Plan, _parse(path), "", problems)
    if not problems:
        problems += [
            schema.unknown(f"--arms: {arm}", arm, [*plan.arms, *plan.variants], "arm of this plan")
            for arm in arms
            if arm not in {*plan.arms, *plan.variants}
        ]
        plan = replace(plan, seeds=list(seeds) or plan.seeds)
        problems += _problems(plan, data)
        if plan.backbone and (backbone is None or not backbone.is_file()):
            problems.append(
                f"backbone: give --backbone FILE, pretrained weights of the teacher's backbone: {backbone}."
            )
    if problems:
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
        message = f"{path} has {len(problems)} problem{'s' * (len(problems) > 1)}; nothing was started:\n{lines}"
        raise ConfigError(message)
    if plan.backbone:
        settings = plan.teacher.set | {BACKBONE: str(backbone)}
        plan = replace(plan, teacher=replace(plan.teacher, set=settings))
    return _located(_only(plan, arms), data)


def _only(plan: Plan, arms: Sequence[str]) -> Plan:
    if not arms:
        return plan
    return replace(
        plan,
        arms=[arm for arm in plan.arms if arm in arms or arm == SOURCE_ONLY],  # which all gains are over
        variants={name: arm for name, arm in plan.variants.items() if name in arms},
        students=[arm for arm in plan.students if arm in arms],
    )


def _parse(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"The plan {path} cannot be read: {error}"
        raise ConfigError(message) from error


def _entries(plan: Plan) -> Iterator[tuple[str, str]]:
    for where, domain in (("source", plan.source), ("target", plan.target)):
        yield from ((f"{where}.{role}", entry) for role in ("train", "val") for entry in getattr(domain, role))
        yield f"{where}.test", domain.test


def _problems(plan: Plan, data: Path | None) -> Iterator[str]:
    if plan.shift not in ("reported", "development"):
        yield f"shift must be reported or development, got {plan.shift!r}."
    if not plan.seeds or min(plan.seeds) < 0 or len(set(plan.seeds)) != len(plan.seeds):
        yield f"seeds must be different numbers of 0 or more, got {plan.seeds}."
    if plan.epochs < 1 or plan.batches < 1:
        yield f"epochs and batches must be at least 1, got {plan.epochs} and {plan.batches}."
    if plan.teacher.self_training_rounds < 1:
        yield f"teacher.self_training_rounds must be at least 1, got {plan.teacher.self_training_rounds}."
    if plan.teacher.self_training_rounds > 1 and not plan.teacher.self_training:
        yield "teacher.self_training_rounds is given without teacher.self_training: name its configs."
    if plan.student.self_training:
        yield "student.refit means nothing, for only teachers have one: leave it out."
    if plan.converged <= 0:
        yield f"converged must lie above 0, got {plan.converged}."
    if not (plan.source.train and plan.source.val and plan.target.train):
        yield "source.train, source.val and target.train must each name at least one file, or `scenes:NAME`."
    for arm in plan.arms:
        if arm not in ARMS:
            yield schema.unknown(f"arms: {arm}", arm, ARMS, "arm")
    if SOURCE_ONLY not in plan.arms:
        yield f"arms must name {SOURCE_ONLY}: every gain is counted from it."
    for name, variant in plan.variants.items():
        if name in ARMS:
            yield f"variants.{name} is an arm already: list it in `arms`, or choose another name."
        if variant.kind not in ("adapt", "oracle") or variant.steps <= 0:
            yield f"variants.{name} must have kind adapt or oracle and steps above 0: {variant.kind}, {variant.steps}."
    for name in set(plan.students) - {*plan.arms, *plan.variants}:
        yield schema.unknown(f"students: {name}", name, [*plan.arms, *plan.variants], "arm of this plan")
    yield from relabel_problems(plan.relabel)
    for name, variant in plan.variants.items():
        if variant.relabel is not None:
            yield from (f"variants.{name}.{problem}" for problem in relabel_problems(variant.relabel))
    yield from _file_problems(plan, data)


def _file_problems(plan: Plan, data: Path | None) -> Iterator[str]:
    for where, entry in _entries(plan):
        if entry.startswith(SCENES):
            if entry.removeprefix(SCENES) not in plan.scenes:
                yield schema.unknown(f"{where}: {entry}", entry, [SCENES + n for n in plan.scenes], "recording")
        elif entry.startswith(DATA) and data is None:
            yield f"{where}: {entry} lies below the folder of your data: give --data FOLDER."
        elif not _locate(entry, data).is_file():
            yield f"{where}: {_locate(entry, data)} does not exist."
    for role, test in (("source.test", plan.source.test), ("target.test", plan.target.test)):
        for entry in (*plan.source.train, *plan.target.train):
            if entry == test or _same_recordings(plan, entry, test):
                yield f"{role}: {test} is trained on too, in {entry}. Hold other recordings out."
    for entry in plan.source.val:
        if entry == plan.target.test or _same_recordings(plan, entry, plan.target.test):
            yield (
                f"target.test: {plan.target.test} has recordings of source.val, {entry}, which fixes the thresholds "
                "that pseudo-labels must reach. Hold other recordings out."
            )
    for role, model in (("teacher", plan.teacher), ("student", plan.student)):
        if model.weights is not None and not Path(model.weights).is_file():
            yield f"{role}.weights: {model.weights} does not exist. Leave it out, and each seed trains its own."
    teacher, student = plan.teacher, plan.student
    models = [teacher.fit, teacher.then, teacher.oracle, teacher.self_training, student.fit, student.then]
    known = plan.variants | {name: ARMS[name] for name in plan.arms if name in ARMS}
    for config in dict.fromkeys(c for given in [*models, *(arm.configs for arm in known.values())] for c in given):
        if not Path(config).is_file():
            yield f"{config} does not exist. Relative paths start at the working directory."
    if any(arm.kind == "oracle" for arm in known.values()) and not plan.teacher.oracle:
        yield "teacher.oracle is missing: name the configs of the training on the target's labels."


def _same_recordings(plan: Plan, *entries: str) -> bool:
    """Say whether two entries are synthetic recordings of which some are the same in a seed of the plan."""
    told = [plan.scenes[name] for entry in entries if (name := entry.removeprefix(SCENES)) in plan.scenes]
    if len(told) < len(entries):
        return False
    numbers = [_numbers(given) for given in told]
    seeds = [{given["seed"]} if "seed" in given else set(plan.seeds) for given in told]
    return bool(set.intersection(*numbers) and set.intersection(*seeds))


def _numbers(scenes: dict[str, Any]) -> set[int]:
    first, count = (scenes.get(name, getattr(ScenesSettings, name)) for name in ("first_recording", "recordings"))
    return set(range(int(first), int(first) + int(count))) if str(first).isdigit() and str(count).isdigit() else set()


def _locate(entry: str, data: Path | None) -> Path:
    return (data or Path()) / entry.removeprefix(DATA) if entry.startswith(DATA) else Path(entry)


def _located(plan: Plan, data: Path | None) -> Plan:
    def each(entry: str) -> str:
        return entry if entry.startswith(SCENES) else str(_locate(entry, data))

    def domain(given: Domain) -> Domain:
        return Domain([each(e) for e in given.train], each(given.test), [each(e) for e in given.val])

    return replace(plan, source=domain(plan.source), target=domain(plan.target))
