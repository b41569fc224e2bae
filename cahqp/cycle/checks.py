"""Check of a plan's files before anything starts: weights, classes of models and labels, sizes of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cahqp.coco.decoding import BrokenImageError, check_header
from cahqp.coco.reader import class_indices, read_coco, read_coco_frames
from cahqp.coco.sources import image_names, source_kind
from cahqp.cycle.plan import SCENES, BasePlan, CyclePlan, Model
from cahqp.errors import CahqpError, ConfigError
from cahqp.runs.schema import refuse
from cahqp.yaml_policy import read_yaml

_LARGEST_SIDE = 8192


@dataclass(frozen=True)
class ModelFacts:
    """A model as its file or its configs describe it.

    Attributes:
        origin: Where the classes are from, for messages.
        classes: Its classes in order.
    """

    origin: str
    classes: tuple[str, ...]


def check_plan(path: Path, plan: BasePlan) -> None:
    """Check weights, classes and sizes of a plan. Synthetic recordings are not rendered yet and not checked.

    Args:
        path: The plan's file, for the message.
        plan: The plan.

    Raises:
        ConfigError: A model file or a config cannot be used, teacher and student differ in their classes, labels have
            other classes or no boxes, or images have another size than their entries.
    """
    problems: list[str] = []
    models = {}
    for role, model in (("teacher", plan.teacher), ("student", plan.student)):
        facts = _noted(problems, lambda role=role, model=model: describe_model(role, model))  # type: ignore[misc]
        if facts is not None:
            models[role] = facts
    problems += _model_problems(models)
    labelled = {"source.train": plan.source.train, "source.val": plan.source.val}
    if "teacher" in models and not problems:
        ignored = _ignored([*plan.teacher.fit, *plan.teacher.adapt, *plan.student.fit, *plan.student.retrain])
        for role, entries in labelled.items():
            for entry in _files(entries):
                _noted(problems, lambda e=entry, r=role: _check_labels(e, r, models["teacher"], ignored))  # type: ignore[misc]
    for entry in _files(plan.target.train if isinstance(plan, CyclePlan) else []):
        _noted(problems, lambda e=entry: _check_frames(e))  # type: ignore[misc]
    refuse(path, problems)


def describe_model(role: str, model: Model) -> ModelFacts | None:
    """Return the classes of a model; `None` if its configs leave them open.

    Raises:
        ConfigError: A config is not YAML, or its size is impossible.
        WeightsError: The model file cannot be used.
    """
    settings = merged(model.fit).get("model", {}).get("init_args", {})
    weights = model.weights or settings.get("weights")
    if weights:
        from cahqp.detectors.model_file import read_metadata  # imports torch

        metadata = read_metadata(Path(weights))
        return ModelFacts(str(weights), tuple(metadata["classes"]))
    detector = settings.get("detector") or {}
    arguments = detector.get("init_args") or {}
    _check_size(role, arguments.get("size"))
    if not arguments.get("classes"):
        return None
    return ModelFacts(" and ".join(model.fit), tuple(map(str, arguments["classes"])))


def merged(configs: Sequence[str]) -> dict[str, Any]:
    """Return the values of configs, later ones laid over earlier ones.

    Raises:
        ConfigError: A config is not a YAML mapping.
    """
    values: dict[str, Any] = {}
    for config in configs:
        try:
            content = read_yaml(Path(config))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            message = f"{config} is not readable YAML: {error}"
            raise ConfigError(message) from error
        if not isinstance(content, dict):
            message = f"{config} is not a config: it must be a mapping of keys and values."
            raise ConfigError(message)
        values = _laid_over(values, content)
    return values


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _laid_over(below[key], value) if isinstance(value, dict) and isinstance(below.get(key), dict) else value
        for key, value in above.items()
    }
    return {**below, **both}


def _noted(problems: list[str], step: Callable[[], ModelFacts | None]) -> ModelFacts | None:
    """Return the result of a step; its error becomes a problem."""
    try:
        return step()
    except CahqpError as error:
        problems.append(str(error).replace("\n", "\n     "))
        return None


def _files(entries: Sequence[str]) -> Iterator[Path]:
    return (Path(entry) for entry in entries if not entry.startswith(SCENES))


def _model_problems(models: Mapping[str, ModelFacts]) -> list[str]:
    teacher, student = models.get("teacher"), models.get("student")
    problems = []
    if teacher is not None and student is not None and teacher.classes != student.classes:
        problems.append(
            "teacher and student need the same classes in the same order:\n"
            f"     {teacher.origin}: {', '.join(teacher.classes)}\n"
            f"     {student.origin}: {', '.join(student.classes)}"
        )
    return problems


def _ignored(configs: Sequence[str]) -> list[str]:
    """Return the categories that the configs of a plan leave out."""
    data = [merged([config]).get("data", {}) for config in configs]
    names = [name for entry in data for name in entry.get("init_args", entry).get("ignore_categories", [])]
    return list(dict.fromkeys(names))


def _check_labels(path: Path, role: str, model: ModelFacts, ignored: Sequence[str]) -> None:
    file = read_coco(path)
    indices = class_indices(file, model.classes, ignored)
    used = file.table.used_categories()
    if not any(index >= 0 for category, index in indices.items() if category in used):
        message = f"{role}: {path} has no boxes of {', '.join(model.classes)}. Give a file with labels."
        raise ConfigError(message)
    if len(file):
        try:
            check_header(file.files[0], file.frames[0].size)
        except BrokenImageError as error:
            message = f"{role}: {file.files[0]} {error}. Correct `width` and `height` in {path}, or the image."
            raise ConfigError(message) from error


def _check_frames(path: Path) -> None:
    """Check that a source of target frames contains frames; videos are read when they are used."""
    kind = source_kind(path)
    if kind == "folder":
        image_names(path)
    elif kind == "coco" and not read_coco_frames(path).frames:
        message = f"{path} contains no images. Give a file or folder with frames."
        raise ConfigError(message)


def _check_size(role: str, size: Any) -> None:
    valid = isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)
    if size is not None and not (valid and all(1 <= side <= _LARGEST_SIDE for side in size)):
        message = f"{role}: size must be [height, width] in pixels, each 1 to {_LARGEST_SIDE}, got {size}."
        raise ConfigError(message)
