"""Reader of benchmark plans: all problems of a plan are reported together, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cahqp.benchmarks.adapt.options import AdaptBenchmarkOptions
from cahqp.benchmarks.adapt.plan import ARMS, BACKBONE, DATA, SCENES, SOURCE_ONLY, BenchmarkPlan
from cahqp.runs import schema
from cahqp.scenes.options import ScenesOptions


def read_plan(path: Path, options: AdaptBenchmarkOptions) -> BenchmarkPlan:
    """Read and check a plan, and apply the options to it.

    Raises:
        ConfigError: The plan or an option is invalid. The message lists all problems.
    """
    plan = schema.validate(BenchmarkPlan, schema.parse(path), path)
    plan = replace(plan, seeds=options.seeds or plan.seeds)
    plan = plan.with_data(options.data) if options.data is not None else plan
    schema.refuse(path, [*_option_problems(plan, options), *_problems(plan)])
    if plan.backbone:
        plan = replace(plan, teacher=replace(plan.teacher, set=plan.teacher.set | {BACKBONE: str(options.backbone)}))
    if not options.students:
        plan = replace(plan, students=[])
    return plan.with_arms(options.arms) if options.arms else plan


def _option_problems(plan: BenchmarkPlan, options: AdaptBenchmarkOptions) -> Iterator[str]:
    names = [*plan.arms, *plan.variants]
    yield from (schema.unknown(f"--arms: {a}", a, names, "arm of this plan") for a in options.arms if a not in names)
    if plan.backbone and (options.backbone is None or not options.backbone.is_file()):
        yield f"backbone: give --backbone FILE, pretrained weights of the teacher's backbone, got {options.backbone}."


def _problems(plan: BenchmarkPlan) -> Iterator[str]:
    if plan.shift not in ("reported", "development"):
        yield f"shift must be reported or development, got {plan.shift!r}."
    if not plan.seeds or min(plan.seeds) < 0 or len(set(plan.seeds)) != len(plan.seeds):
        yield f"seeds must be different integers >= 0, got {plan.seeds}."
    if plan.epochs < 1 or plan.batches < 1:
        yield f"epochs and batches must be at least 1, got {plan.epochs} and {plan.batches}."
    if plan.teacher.self_training_rounds < 1:
        yield f"teacher.self_training_rounds must be at least 1, got {plan.teacher.self_training_rounds}."
    if plan.teacher.self_training_rounds > 1 and not plan.teacher.self_training:
        yield "teacher.self_training is missing: teacher.self_training_rounds needs its configs."
    if plan.converged <= 0:
        yield f"converged must be above 0, got {plan.converged}."
    if not (plan.source.train and plan.source.val and plan.target.train):
        yield "source.train, source.val and target.train must each contain at least one file or `scenes:NAME`."
    yield from _arm_problems(plan)
    yield from _frame_problems(plan)
    yield from _overlap_problems(plan)
    yield from _file_problems(plan)


def _arm_problems(plan: BenchmarkPlan) -> Iterator[str]:
    yield from (schema.unknown(f"arms: {arm}", arm, ARMS, "arm") for arm in plan.arms if arm not in ARMS)
    if SOURCE_ONLY not in plan.arms:
        yield f"arms must name {SOURCE_ONLY}: it is the baseline of every gain."
    for name, variant in plan.variants.items():
        if name in ARMS:
            yield f"variants.{name} is a built-in arm: list it in `arms`, or choose another name."
        if variant.kind not in ("adapt", "oracle") or variant.steps <= 0:
            yield (
                f"variants.{name} must have kind adapt or oracle and steps above 0, got kind {variant.kind} and "
                f"{variant.steps} steps."
            )
    names = [*plan.arms, *plan.variants]
    for name in plan.students:
        if name not in names:
            yield schema.unknown(f"students: {name}", name, names, "arm of this plan")


def _frame_problems(plan: BenchmarkPlan) -> Iterator[str]:
    recordings = [SCENES + name for name in plan.scenes]
    for key, entry in plan.entries():
        if entry.startswith(SCENES):
            if entry not in recordings:
                yield schema.unknown(f"{key}: {entry}", entry, recordings, "recording")
        elif entry.startswith(DATA):
            yield f"{key}: {entry} is a file below the folder of your data: give --data FOLDER."
        elif not Path(entry).is_file():
            yield f"{key}: {entry} does not exist."


def _overlap_problems(plan: BenchmarkPlan) -> Iterator[str]:
    for key, test in (("source.test", plan.source.test), ("target.test", plan.target.test)):
        for entry in (*plan.source.train, *plan.target.train):
            if _same_recordings(plan, entry, test):
                yield f"{key}: {test} is also trained on, in {entry}. Hold out other recordings."
    for entry in plan.source.val:
        if _same_recordings(plan, entry, plan.target.test):
            yield (
                f"target.test: {plan.target.test} has recordings of source.val, {entry}, which fixes the thresholds "
                "of pseudo-labels. Hold out other recordings."
            )


def _same_recordings(plan: BenchmarkPlan, one: str, two: str) -> bool:
    """Return whether two entries are the same, or share a synthetic recording in some seed."""
    if one == two:
        return True
    scenes = [plan.scenes[name] for entry in (one, two) if (name := entry.removeprefix(SCENES)) in plan.scenes]
    if len(scenes) < 2:
        return False
    seeds = [{settings["seed"]} if "seed" in settings else set(plan.seeds) for settings in scenes]
    return bool(set.intersection(*map(_recording_numbers, scenes)) and set.intersection(*seeds))


def _recording_numbers(scenes: dict[str, Any]) -> set[int]:
    first, count = (str(scenes.get(key, getattr(ScenesOptions, key))) for key in ("first_recording", "recordings"))
    return set(range(int(first), int(first) + int(count))) if first.isdigit() and count.isdigit() else set()


def _file_problems(plan: BenchmarkPlan) -> Iterator[str]:
    teacher, student = plan.teacher, plan.student
    for role, weights in (("teacher", teacher.weights), ("student", student.weights)):
        if weights is not None and not Path(weights).is_file():
            yield f"{role}.weights: {weights} does not exist. Without this key each seed trains its own."
    arms = plan.variants | {name: ARMS[name] for name in plan.arms if name in ARMS}
    configs = [*teacher.fit, *teacher.adapt, *teacher.oracle, *teacher.self_training, *student.fit, *student.retrain]
    configs += [config for arm in arms.values() for config in arm.configs]
    for config in dict.fromkeys(configs):
        if not Path(config).is_file():
            yield f"{config} does not exist. Relative paths start at the working directory."
    if any(arm.kind == "oracle" for arm in arms.values()) and not teacher.oracle:
        yield "teacher.oracle is missing: name the configs of the training on the target labels."
