"""Reader of benchmark plans: all problems of a plan are reported together, before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cahqp.benchmarks.adapt.plan import ARMS, BACKBONE, SOURCE_ONLY, START, BenchmarkModel, BenchmarkPlan
from cahqp.benchmarks.options import AdaptBenchmarkOptions
from cahqp.cycle.plan import SCENES
from cahqp.errors import ConfigError
from cahqp.runs.schema import parse, refuse, unknown, validate
from cahqp.scenes.options import ScenesOptions

DATA = "data:"


def read_benchmark_plan(path: Path, options: AdaptBenchmarkOptions) -> BenchmarkPlan:
    """Read and check a plan, and apply the options to it.

    Raises:
        ConfigError: The plan or an option is invalid. The message lists all problems.
    """
    values = parse(path)
    values |= {key: _locate(values[key], options.data) for key in ("source", "target") if key in values}
    plan = validate(BenchmarkPlan, values, path)
    plan = replace(plan, seeds=options.seeds or plan.seeds)
    refuse(path, [*_option_problems(plan, options), *_arm_problems(plan), *_overlap_problems(plan)])
    sections: dict[str, Any] = {key: _with_weights(section, options) for key, section in plan.models.items()}
    plan = replace(plan, **sections)
    if not options.students:
        plan = replace(plan, students=[])
    return plan.with_arms(options.arms) if options.arms else plan


def _with_weights(section: BenchmarkModel, options: AdaptBenchmarkOptions) -> BenchmarkModel:
    """Return a detector's section with the published weights of the command line."""
    weights = {BACKBONE: str(options.backbone)} if section.backbone else {}
    weights |= {START: str(options.start)} if section.start else {}
    return replace(section, set=section.set | weights)


def _locate(value: Any, folder: Path | None) -> Any:
    """Return a section with every `data:FILE` replaced by the path below a folder."""
    if isinstance(value, dict):
        return {key: _locate(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_locate(item, folder) for item in value]
    if not (isinstance(value, str) and value.startswith(DATA)):
        return value
    if folder is None:
        message = f"{value} is a file below the folder of your data: give --data FOLDER."
        raise ConfigError(message)
    return str(folder / value.removeprefix(DATA))


def _option_problems(plan: BenchmarkPlan, options: AdaptBenchmarkOptions) -> Iterator[str]:
    yield from _unknown_arms("--arms", options.arms, plan)
    sections = plan.models
    if any(each.backbone for each in sections.values()) and not (options.backbone and options.backbone.is_file()):
        yield f"backbone: give --backbone FILE, pretrained weights of a detector's backbone, got {options.backbone}."
    if any(each.start for each in sections.values()) and not (options.start and options.start.exists()):
        yield f"start: give --start FOLDER, a detector written by `save_pretrained`, got {options.start}."
    if min(plan.seeds) < 0 or len(set(plan.seeds)) != len(plan.seeds):
        yield f"seeds must be different integers >= 0, got {plan.seeds}."


def _unknown_arms(key: str, names: Iterable[str], plan: BenchmarkPlan) -> Iterator[str]:
    known = [*plan.arms, *plan.variants]
    return (unknown(f"{key}: {name}", name, known, "arm of this plan") for name in names if name not in known)


def _arm_problems(plan: BenchmarkPlan) -> Iterator[str]:
    yield from (unknown(f"arms: {arm}", arm, ARMS, "arm") for arm in plan.arms if arm not in ARMS)
    if SOURCE_ONLY not in plan.arms:
        yield f"arms must name {SOURCE_ONLY}: it is the baseline of every gain."
    for name in ARMS.keys() & plan.variants.keys():
        yield f"variants.{name} is a built-in arm: list it in `arms`, or choose another name."
    yield from _unknown_arms("students", plan.students, plan)
    arms = [arm for name, arm in plan.known_arms.items() if name in {*plan.arms, *plan.variants}]
    for config in dict.fromkeys(config for arm in arms for config in arm.configs):
        if not Path(config).is_file():
            yield f"{config} does not exist. Relative paths start at the working directory."
    if any(arm.kind == "oracle" for arm in arms) and not plan.teacher.oracle:
        yield "teacher.oracle is missing: name the configs of the training on the target labels."
    if any("start" in (arm.kind, arm.begin) for arm in arms) and not plan.teacher.start:
        yield "teacher.start is missing: name the configs that make a model file of the model in --start."
    if any(not arm.adaptation for arm in arms) and not plan.teacher.self_training:
        yield "teacher.self_training is missing: an arm with `adaptation: false` trains in self-training rounds alone."
    if any(arm.expert for arm in arms):
        yield from _expert_problems(plan)


def _expert_problems(plan: BenchmarkPlan) -> Iterator[str]:
    if plan.expert is None:
        yield "expert is missing: name the second detector of the arms with `expert`."
    if len(plan.source.val) > 1:
        yield "source.val must be one file: an arm with `expert` calibrates scores on it."


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
    if one == two or not (one.startswith(SCENES) and two.startswith(SCENES)):
        return one == two
    scenes = [plan.scenes[entry.removeprefix(SCENES)] for entry in (one, two)]
    seeds = [{settings["seed"]} if "seed" in settings else set(plan.seeds) for settings in scenes]
    return bool(set.intersection(*map(_recording_numbers, scenes)) and set.intersection(*seeds))


def _recording_numbers(scenes: dict[str, Any]) -> set[int]:
    first, count = (str(scenes.get(key, getattr(ScenesOptions, key))) for key in ("first_recording", "recordings"))
    return set(range(int(first), int(first) + int(count))) if first.isdigit() and count.isdigit() else set()
