"""Checks of a benchmark's own files before hours of training start. Synthetic recordings need none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cahqp.benchmarks.adapt.plan import BenchmarkPlan
from cahqp.coco.decoding import check_header
from cahqp.coco.reader import class_indices, read_coco, read_coco_frames
from cahqp.cycle.plan import SCENES
from cahqp.cycle.training_steps import merge_configs
from cahqp.data.frames import open_frames
from cahqp.data.images import Quarantine
from cahqp.data.splits import Located, check_leakage
from cahqp.detectors.model_file import read_metadata
from cahqp.errors import ConfigError, DataError
from cahqp.evaluation.bootstrap import group_frames
from cahqp.evaluation.ground_truth import read_ground_truth

CLASSES, IGNORED, INVALID = "model.detector.init_args.classes", "data.ignore_categories", "data.max_invalid_share"
MAX_INVALID_SHARE = 0.05


def check_files(plan: BenchmarkPlan) -> None:
    """Check splits, labels and images of a plan's files.

    Raises:
        DataError: A recording or image is in two splits; labels contain no object of the classes, or other categories;
            the target test frames are too few for an interval; too many images are unreadable or of another size than
            declared.
        ConfigError: `data.max_invalid_share` is no share in 0..1.
    """
    source, target = plan.source, plan.target
    max_invalid_share = _max_invalid_share(plan)
    later_block = bool(plan.set.get("data.later_block", any(_data_settings(plan, "later_block"))))
    for seen, held_out in (
        ([*source.train, *target.train], [source.test, target.test]),
        (source.val, [target.test]),
        ([*source.train, *target.train], source.val),
    ):
        if _files(seen) and _files(held_out):
            check_leakage(_located(_files(seen)), _located(_files(held_out)), later_block)
    for entries in (source.train, source.val, [source.test], [target.test]):
        _check_objects(entries, plan)
    _check_target(plan)
    for path in _files([target.test]):
        if group_frames(read_ground_truth(path, _classes(plan))).count < 2:
            message = (
                f"{path} is one recording with too few frames for an interval. Add recordings, or more frames of this "
                "one."
            )
            raise DataError(message)
    for entries in (source.train, source.val, target.train, [source.test], [target.test]):
        if all(not entry.startswith(SCENES) for entry in entries):  # otherwise `fit` counts scenes and files together
            _check_images(_files(entries), max_invalid_share)


def _classes(plan: BenchmarkPlan) -> Sequence[str] | None:
    """Return the teacher's classes from its model file or its configs, `None` if the configs name none."""
    teacher = plan.teacher
    if teacher.weights is not None:
        return list(read_metadata(Path(teacher.weights))["classes"])
    model = merge_configs(teacher.start or teacher.fit).get("model", {}).get("init_args", {})
    classes: Sequence[str] | None = model.get("detector", {}).get("init_args", {}).get("classes")
    return teacher.set.get(CLASSES, classes)


def _files(entries: Iterable[str]) -> list[Path]:
    return [Path(entry) for entry in entries if not entry.startswith(SCENES)]


def _located(paths: Sequence[Path]) -> list[Located]:
    source = open_frames(paths)
    return [(frame, source.path(position)) for position, frame in enumerate(source.frames)]


def _check_target(plan: BenchmarkPlan) -> None:
    """Check the frames to adapt to, and their labels if an arm learns from them."""
    entries, paths = plan.target.train, _files(plan.target.train)
    learning = [name for name, arm in plan.arms_by_name.items() if arm.kind == "oracle" or arm.ground_truth is not None]
    if not learning:
        if len(paths) == len(entries) and not any(len(read_coco_frames(path)) for path in paths):
            message = f"{', '.join(map(str, paths))} contains no images to adapt to. Add frames."
            raise DataError(message)
        return
    try:
        _check_objects(entries, plan)
    except DataError as error:
        others = " ".join(name for name in plan.arms_by_name if name not in learning)
        message = f"{error}\nLearning from these labels: {', '.join(learning)}. Without them: --arms {others}."
        raise DataError(message) from error


def _check_objects(entries: Sequence[str], plan: BenchmarkPlan) -> None:
    """Check that files contain objects of the classes and no unknown categories. Single files may be empty."""
    paths = _files(entries)
    if not paths:
        return
    classes, has_objects = _classes(plan), len(paths) < len(entries)  # scenes contain objects
    ignored = [
        name for names in [*_data_settings(plan, "ignore_categories"), plan.set.get(IGNORED)] for name in names or []
    ]
    for path in paths:
        file = read_coco(path)
        known = set(file.categories)
        if classes is not None:
            known = {category for category, index in class_indices(file, classes, ignored).items() if index >= 0}
        has_objects |= bool(file.table.used_categories() & known)
    if not has_objects:
        message = (
            f"{', '.join(map(str, paths))} has no object of {', '.join(classes or ['any class'])}: add labels to train "
            "on or to measure with."
        )
        raise DataError(message)


def _max_invalid_share(plan: BenchmarkPlan) -> float:
    """Return the plan's allowed share of unreadable images, otherwise the largest of its trainings.

    Raises:
        ConfigError: The plan's value is no share in 0..1.
    """
    if INVALID not in plan.set:
        shares = [share for share in _data_settings(plan, "max_invalid_share") if isinstance(share, int | float)]
        return max([MAX_INVALID_SHARE, *shares])
    share = plan.set[INVALID]
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        message = f"set: {INVALID} must be a share in 0..1, got {share!r}."
        raise ConfigError(message)
    return float(share)


def _data_settings(plan: BenchmarkPlan, name: str) -> list[Any]:
    """Return a DataModule setting in each of the teacher's trainings, `None` where it is not set."""
    teacher = plan.teacher
    trainings = (teacher.start, teacher.fit, teacher.adapt, teacher.oracle, teacher.self_training)
    data = [merge_configs(configs).get("data", {}).get("init_args", {}) for configs in trainings]
    return [settings.get(name) for settings in data] + [teacher.set.get(f"data.{name}")]


def _check_images(paths: Sequence[Path], max_invalid_share: float) -> None:
    """Check the header of each image: format and size."""
    if not paths:
        return
    source = open_frames(paths)

    def check(position: int) -> None:
        path = source.path(position)
        if path is not None:
            check_header(path, source.frames[position].size)

    quarantine = Quarantine([frame.name for frame in source.frames], max_invalid_share, check)
    for position in range(len(source)):
        quarantine.read(position)
    quarantine.check()
