"""What a benchmark's own files must hold: looked at, all of it, before hours of training start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cahqp.benchmarks.adapt.configs import merged
from cahqp.benchmarks.adapt.plan import SCENES, Model, Plan
from cahqp.coco.reader import class_indices, read_coco, read_coco_frames
from cahqp.data.frames import open_frames
from cahqp.data.images import BrokenImageError, Quarantine, check_header
from cahqp.data.splits import Located, check_leakage
from cahqp.detectors.model_file import describe
from cahqp.errors import ConfigError, DataError
from cahqp.evaluation.bootstrap import group_frames
from cahqp.evaluation.ground_truth import read_ground_truth

CLASSES, IGNORED, BROKEN = "model.detector.init_args.classes", "data.ignore_categories", "data.max_invalid_share"
MAX_INVALID_SHARE = 0.05


def check_files(plan: Plan) -> None:
    """Refuse files that would end the plan later, or make its figures wrong. Synthetic recordings have none.

    Raises:
        DataError: A recording is on two sides, or an image is; the target's test frames are those that fix the
            thresholds; labels that are learnt from, or a test file, have objects of another category than the
            classes, or none; the target's test frames are too few for an interval; too many images are no images, or
            of another size than their file says.
        ConfigError: `data.max_invalid_share` in the plan's `set` is no share in 0..1.
    """
    source, target = plan.source, plan.target
    share = _share(plan)
    _check_apart(plan)
    for entries in (source.train, source.val, [source.test], [target.test]):
        _check_objects(entries, plan)
    _check_target(target.train, plan)
    for path in _files([target.test]):
        if group_frames(read_ground_truth(path, classes_of(plan.teacher))).count < 2:
            message = (
                f"{path} is one recording of so few frames that no interval can be had from them. Give more "
                "recordings, or more frames of it."
            )
            raise DataError(message)
    for entries in (source.train, source.val, target.train, [source.test], [target.test]):
        _check_images(entries, share)


def classes_of(model: Model) -> Sequence[str] | None:
    """Return a detector's classes as its file or the configs of its training say, `None` where these are silent."""
    if model.weights is not None:
        return list(describe(Path(model.weights))["classes"])
    settings = merged(model.fit).get("model", {}).get("init_args", {}).get("detector", {}).get("init_args", {})
    classes: Sequence[str] | None = model.set.get(CLASSES, settings.get("classes"))
    return classes


def _files(entries: Iterable[str]) -> list[Path]:
    return [Path(entry) for entry in entries if not entry.startswith(SCENES)]


def _check_apart(plan: Plan) -> None:
    later_block = bool(plan.set.get("data.later_block", any(_said(plan, "later_block"))))
    for known, held_out in (
        ([*plan.source.train, *plan.target.train], [plan.source.test, plan.target.test]),
        (plan.source.val, [plan.target.test]),
        ([*plan.source.train, *plan.target.train], plan.source.val),
    ):
        if _files(known) and _files(held_out):
            check_leakage(_located(_files(known)), _located(_files(held_out)), later_block)


def _located(paths: Sequence[Path]) -> list[Located]:
    source = open_frames(paths)
    return [(frame, source.path(position)) for position, frame in enumerate(source.frames)]


def _check_target(entries: Sequence[str], plan: Plan) -> None:
    """Check what is adapted to; its labels where an arm learns from them."""
    learning = [name for name, arm in plan.chosen.items() if arm.kind == "oracle" or arm.ground_truth is not None]
    if not learning:
        paths = _files(entries)
        if len(paths) == len(entries) and not any(len(read_coco_frames(path)) for path in paths):
            message = f"{_listed(paths)} has no images: there is nothing to adapt to."
            raise DataError(message)
        return
    try:
        _check_objects(entries, plan)
    except DataError as error:
        others = " ".join(name for name in plan.chosen if name not in learning)
        message = f"{error}\nLearning from these labels: {', '.join(learning)}. Without them: --arms {others}."
        raise DataError(message) from error


def _check_objects(entries: Sequence[str], plan: Plan) -> None:
    """Check that files have an object of the classes among them, and none of unknown ones; one may be empty roads."""
    paths = _files(entries)
    if not paths:
        return
    classes, found = classes_of(plan.teacher), len(paths) < len(entries)  # scenes have objects
    for path in paths:
        file = read_coco(path)
        known = set(file.categories)
        if classes is not None:
            indices = class_indices(file, classes, _ignored(plan))
            known = {category for category, index in indices.items() if index >= 0}
        found |= bool(file.table.used_categories() & known)
    if not found:
        message = f"{_listed(paths)} has no object of {', '.join(classes or ['any class'])}: "
        raise DataError(message + "nothing can be learnt from it or measured on it.")


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


def _ignored(plan: Plan) -> list[str]:
    """Return the categories that any of the plan's trainings leaves out."""
    given = [*_said(plan, "ignore_categories"), plan.set.get(IGNORED)]
    return [name for names in given for name in names or []]


def _share(plan: Plan) -> float:
    """Return the share of broken images that is put up with, the largest of the plan's trainings.

    Raises:
        ConfigError: The plan's own is no share in 0..1.
    """
    if BROKEN not in plan.set:
        return max(
            [
                MAX_INVALID_SHARE,
                *(share for share in _said(plan, "max_invalid_share") if isinstance(share, int | float)),
            ]
        )
    share = plan.set[BROKEN]
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        message = f"set: {BROKEN} must be a share in 0..1, got {share!r}."
        raise ConfigError(message)
    return float(share)


def _said(plan: Plan, name: str) -> list[Any]:
    """Return what the trainings of a plan's teacher say of a setting of their data, in configs and in `teacher.set`."""
    teacher = plan.teacher
    said = [
        merged(configs).get("data", {})
        for configs in (teacher.fit, teacher.then, teacher.oracle, teacher.self_training)
    ]
    return [settings.get("init_args", {}).get(name) for settings in said] + [teacher.set.get(f"data.{name}")]


def _check_images(entries: Sequence[str], limit: float) -> None:
    """Look at the head of each image: its size and whether it is one at all. Beside scenes `fit` counts them all."""
    paths = _files(entries)
    if not paths or len(paths) < len(entries):
        return
    source = open_frames(paths)
    reasons: dict[int, str] = {}
    quarantine = Quarantine([frame.name for frame in source.frames], limit, reasons.__getitem__)
    for position, frame in enumerate(source.frames):
        path = source.path(position)
        try:
            if path is not None:
                check_header(path, frame.size)
        except BrokenImageError as error:
            reasons[position] = str(error)
            quarantine.add(position)
    quarantine.check()
