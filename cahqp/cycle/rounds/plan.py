"""A plan of many rounds: what the fleet sees in each, and how drift, replay and the gate are to judge."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cahqp.coco.sources import is_video
from cahqp.cycle.plan import NAME, Plan, Relabel, Source, Student, Target, Teacher, parse, problems_of, refuse
from cahqp.cycle.plan import data_problems as entry_problems
from cahqp.errors import ConfigError
from cahqp.runs import schema


@dataclass(frozen=True)
class Round:
    """One turn of the cycle.

    Attributes:
        name: Of the domain. A domain may come back under the same name.
        train: Frames to adapt to: entries as in `target.train`. Empty where `frames` is given.
        frames: A folder or an fsspec URL such as `s3://bucket/night`, fetched first. Default none.
        frame_interval: Seconds between the frames taken from a video. Default none: all frames.
    """

    name: str
    train: list[str] = field(default_factory=list)
    frames: str | None = None
    frame_interval: float | None = None


@dataclass(frozen=True)
class Watch:
    """A folder that fills: each time enough has arrived, a round begins.

    Attributes:
        frames: The folder or fsspec URL; its first level of folders names the cameras.
        min_frames: New files that make a round.
        seconds: Between two looks.
        settle: Seconds for which a file has to have been left alone: younger ones are still being written.
        frame_interval: Seconds between the frames taken from a video. Default none: all frames.
    """

    frames: str
    min_frames: int = 100
    seconds: float = 60.0
    settle: float = 10.0
    frame_interval: float | None = None


@dataclass(frozen=True)
class Drift:
    """How drift is told; see `cahqp drift --help`.

    Attributes:
        when: `drifted` adapts only where a camera has drifted from everything known; `always` adapts in each round and
            measures drift for the report.
        window: Frames of a window.
        block: Following frames drawn together.
        alpha: Level of the test of one window.
        margin: How far beyond the reference's own windows a window has to be.
        confirm: Following windows that must be over.
    """

    when: str = "drifted"
    window: int = 24
    block: int = 4
    alpha: float = 0.02
    margin: float = 1.0
    confirm: int = 2


@dataclass(frozen=True)
class Replay:
    """The buffer of past domains; see `cahqp replay --help`.

    Attributes:
        capacity: Most frames.
        share: Of the capacity that a new domain takes.
        select: Past domains that are replayed in a round.
        hold_out: Share of each recording that is judged on and never trained on.
    """

    capacity: int = 400
    share: float = 0.25
    select: int = 2
    hold_out: float = 0.2


@dataclass(frozen=True)
class Gate:
    """How a candidate is judged; see `cahqp gate --help`.

    Attributes:
        canary: COCO files of the target with labels, or `scenes:NAME`. Default none.
        max_ap50_drop: AP50 in 0..1 that the lower bound may lie below.
        max_slowdown: Times as long as the running package that a frame may take.
        precision: Of the exported package: `float32` or `int8`.
        registry: Directory of the registry that published packages go to. Default none.
    """

    canary: list[str] = field(default_factory=list)
    max_ap50_drop: float = 0.01
    max_slowdown: float = 1.5
    precision: str = "float32"
    registry: str | None = None


@dataclass(frozen=True)
class RoundsPlan:
    """Any number of rounds. What is not said here is as in `Plan`.

    Attributes:
        name: Names the output, `runs/<name>`.
        source: Labelled frames.
        teacher: The large detector; every round adapts it from the weights it has here.
        student: The small detector; every round retrains the one that runs.
        rounds: In their order. Default none: `watch` makes them.
        watch: A folder that fills. Default none.
        seed: Of every stage.
        scenes: Synthetic recordings to make first.
        relabel: How detections become labels.
        tests: COCO files or `scenes:NAME` by domain, opened by the evaluation of every round alone. Default none.
        budget: Most frames of a round that are adapted to, chosen by `cahqp sample`. Default none: all.
        drift: Default none: every round adapts.
        replay: Default none: nothing is replayed.
        gate: Default none: `cahqp publish` compares point values.
    """

    name: str
    source: Source
    teacher: Teacher
    student: Student
    rounds: list[Round] = field(default_factory=list)
    watch: Watch | None = None
    seed: int = 0
    scenes: dict[str, dict[str, Any]] = field(default_factory=dict)
    relabel: Relabel = field(default_factory=Relabel)
    tests: dict[str, str] = field(default_factory=dict)
    budget: int | None = None
    drift: Drift | None = None
    replay: Replay | None = None
    gate: Gate | None = None

    def single(self, target: Target) -> Plan:
        """Return the plan of one round."""
        return Plan(self.name, self.source, target, self.teacher, self.student, self.seed, self.scenes, self.relabel)


def has_rounds(path: Path) -> bool:
    """Say whether a plan's file speaks of rounds.

    Raises:
        ConfigError: It cannot be read.
    """
    return bool({"rounds", "watch"} & parse(path).keys())


def read_rounds(path: Path) -> RoundsPlan:
    """Read and check a plan of rounds.

    Raises:
        ConfigError: Anything about it cannot be right. All problems come together.
    """
    problems: list[str] = []
    plan = schema.build(RoundsPlan, parse(path), "", problems)
    single = plan.single(Target([entry for one in plan.rounds for entry in one.train], list(plan.tests.values())))
    lacking = not single.target.train
    # A plan whose frames all arrive later has no target.train to be checked.
    single = replace(single, target=replace(single.target, train=single.source.train)) if lacking else single
    problems += [p for p in problems_of(single) if p not in problems]
    problems += list(_problems(plan))
    refuse(path, problems)
    return plan


def _problems(plan: RoundsPlan) -> Iterator[str]:
    if bool(plan.rounds) == (plan.watch is not None):
        yield "rounds or watch: give one of the two, a list of rounds or a folder that fills."
    for number, one in enumerate(plan.rounds):
        where = f"rounds[{number}]"
        if not NAME.fullmatch(one.name) or one.name == "new":
            yield f"{where}.name must be letters, digits, `-`, `_` and `.`, and not `new`, got {one.name!r}."
        if bool(one.train) == (one.frames is not None):
            yield f"{where} needs train or frames, one of the two."
        if plan.replay is not None or plan.budget is not None:
            for entry in one.train:
                if is_video(entry):
                    yield f"{where}.train: {entry} is a video; for replay and budget give its folder as `frames`."
        if one.frame_interval is not None and one.frame_interval <= 0:
            yield f"{where}.every must be more than 0 seconds, got {one.frame_interval}."
    for name in plan.tests:
        if not NAME.fullmatch(name):
            yield f"tests.{name} must be named with letters, digits, `-`, `_` and `.`."
    if plan.watch is not None and (plan.watch.min_frames < 1 or plan.watch.seconds <= 0 or plan.watch.settle < 0):
        yield "watch.at_least must be 1 or more, watch.seconds above 0, watch.settle 0 or more."
    if plan.drift is not None and plan.drift.when not in ("drifted", "always"):
        yield f"drift.when must be drifted or always, got {plan.drift.when!r}."
    if plan.drift is not None:
        yield from _drift_problems(plan.drift)
    if plan.budget is not None and plan.budget < 1:
        yield f"budget must be 1 or more, got {plan.budget}."
    yield from _judge_problems(plan)


def _drift_problems(drift: Drift) -> Iterator[str]:
    from cahqp.drift.command import KINDS, DriftSettings  # brings scipy, which a plan without drift does not need

    settings = DriftSettings(**{key: value for key, value in vars(drift).items() if key != "when"})
    try:
        settings.check()
    except ConfigError as error:
        # How many permutations there are is no key of a plan.
        lines = [line for line in str(error).splitlines() if not line.startswith("--permutations")]
        yield from (line.replace("--", "drift.") for line in lines)
    lowest = len(KINDS) / (settings.permutations + 1)
    if 0 < drift.alpha < lowest:
        yield f"drift.alpha must be {lowest:g} or more with {settings.permutations} permutations, got {drift.alpha}."


def _judge_problems(plan: RoundsPlan) -> Iterator[str]:
    if plan.replay is not None:
        if plan.replay.capacity < 1 or plan.replay.select < 0:
            yield "replay.capacity must be 1 or more and replay.select 0 or more."
        for name in ("share", "hold_out"):
            if not 0 <= getattr(plan.replay, name) <= 1:
                yield f"replay.{name} must be in 0..1, got {getattr(plan.replay, name)}."
    if plan.gate is not None:
        if plan.gate.precision not in ("float32", "int8"):
            yield f"gate.precision must be float32 or int8, got {plan.gate.precision!r}."
        if not 0 <= plan.gate.max_ap50_drop <= 1:
            yield f"gate.max_ap50_drop must be in 0..1, got {plan.gate.max_ap50_drop}."
        if not 0 < plan.gate.max_slowdown < math.inf:
            yield f"gate.max_slowdown must be a number above 0, got {plan.gate.max_slowdown}."
        for entry in plan.gate.canary:
            yield from entry_problems(plan.single(Target([])), "gate.canary", entry)
