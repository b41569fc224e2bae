"""`cahqp init`: survey the frames, prepare the starting points, and write a plan with its configs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cahqp.cycle.checks import check_plan
from cahqp.cycle.init import smoke
from cahqp.cycle.init.options import InitOptions
from cahqp.cycle.init.starting_points import PUBLISHED, Role, Start, check_start, prepare_start
from cahqp.cycle.init.survey import Survey, survey
from cahqp.cycle.plan import read_plan
from cahqp.errors import ConfigError, RunError
from cahqp.files import atomic_write

PLAN = "plan.yaml"

_LONG_SIDE, _SMOKE_SIDE, _STRIDE = 384, 96, 32
"""Long side of the images of the `cpu` models, and the largest stride of their feature maps, in pixels."""


def init(options: InitOptions) -> None:
    """Run `cahqp init`.

    Raises:
        ConfigError: An option is invalid, or models and labels have no class in common.
        DataError: A file cannot be used.
        RunError: The folder has a plan already.
    """
    folder = options.folder
    if (folder / PLAN).exists() or (folder.exists() and not folder.is_dir()):
        message = f"{folder / PLAN if folder.is_dir() else folder} exists already. Give another folder, or remove it."
        raise RunError(message)
    check_start("teacher", options.teacher)
    check_start("student", options.student)
    facts = survey(options.source, options.val, options.target, options.test)
    starts = _prepare(options, list(facts.boxes))
    facts, classes = _choose_classes(facts, starts)
    written = _write(options, facts, classes, starts)
    try:
        check_plan(folder / PLAN, read_plan(folder / PLAN))
    except ConfigError:
        (folder / PLAN).unlink()  # so that the corrected command can write it
        raise
    print("\n".join(_report(options, facts, classes, written)))


def _prepare(options: InitOptions, classes: Sequence[str]) -> dict[Role, Start]:
    """Return the starting points; a model file of cahqp determines the classes of a converted checkpoint."""
    given: dict[Role, str | None] = {"teacher": options.teacher, "student": options.student}
    starts: dict[Role, Start] = {}
    for role, text in sorted(given.items(), key=lambda item: item[1] in PUBLISHED):
        if text is not None:
            starts[role] = prepare_start(role, text, options.folder / "weights", classes)
            classes = starts[role].classes
    return starts


def _choose_classes(facts: Survey, starts: dict[Role, Start]) -> tuple[Survey, list[str]]:
    """Return the classes of both models; labels of other classes are left out.

    Raises:
        ConfigError: Two given models have different classes, or a given model has no class of the labels.
    """
    chosen = {tuple(start.classes) for start in starts.values() if start.trained} or {tuple(facts.boxes)}
    if len(chosen) > 1:
        lines = [f"  {start.origin}: {', '.join(start.classes)}" for start in starts.values()]
        remedy = "Give models with the same classes in the same order, or leave one out."
        raise ConfigError("\n".join(["--teacher and --student have different classes:", *lines, remedy]))
    classes = list(chosen.pop())
    if not set(classes) & set(facts.boxes):
        model = " and ".join(start.origin for start in starts.values())
        message = (
            f"--source has boxes of {', '.join(facts.boxes)}; {model} has the classes {', '.join(classes)}. Rename the "
            "categories of the file, or leave the model out."
        )
        raise ConfigError(message)
    left_out = [name for name in facts.boxes if name not in classes]
    return replace(facts, ignored=sorted({*facts.ignored, *left_out} - set(classes))), classes


@dataclass(frozen=True)
class _Frames:
    """Frames of the plan by role, as paths in it."""

    train: list[Path]
    val: list[Path]
    target: list[Path]
    test: list[Path]
    frame_interval: float


def _frames(options: InitOptions) -> _Frames:
    roles = {"train": options.source, "val": options.val, "target": options.target, "test": options.test}
    if not options.smoke:
        return _Frames(**roles, frame_interval=options.frame_interval)
    small = {role: smoke.shrink(paths, options.folder / "smoke", role) for role, paths in roles.items()}
    return _Frames(**small, frame_interval=smoke.interval(options.target, options.frame_interval))


def _write(options: InitOptions, facts: Survey, classes: list[str], starts: dict[Role, Start]) -> list[Path]:
    """Write the configs and, last, the plan."""
    folder, frames = options.folder, _frames(options)
    trained = {role: start.path for role, start in starts.items() if start.trained}
    values = {
        **{name: [path.as_posix() for path in getattr(frames, name)] for name in ("train", "val", "target", "test")},
        "folder": folder.as_posix(),
        "working_directory": Path.cwd().as_posix(),
        "name": re.sub("[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-.") or "mine",
        "videos": facts.videos,
        "frame_interval": frames.frame_interval,
        "max_gap": round(1.5 * frames.frame_interval, 3),
        "teacher_weights": trained["teacher"].as_posix() if "teacher" in trained else None,
        "student_weights": trained["student"].as_posix() if "student" in trained else None,
        "smoke": options.smoke,
        "preset": options.preset,
        "classes": classes,
        "boxes": ", ".join(f"{name} {facts.boxes.get(name, 0):,}" for name in classes),
        "frames": facts.frames,
        "ignored": facts.ignored,
        "later_block": facts.later_block,
        **_sizes(facts, _SMOKE_SIDE if options.smoke else _LONG_SIDE),
    }
    names = [f"{role}{suffix}.yaml" for role in ("teacher", "student") for suffix in ("", _SECOND[role])]
    names = [name for name in names if name.removesuffix(".yaml") not in trained]
    for name in [*names, *(["smoke.yaml"] if options.smoke else [])]:
        start = starts.get("teacher" if name.startswith("teacher") else "student")
        fields = {"start": start and start.origin, "start_file": start and start.path.as_posix()}
        _render(folder / "configs" / name, name, {**values, **fields, "start_note": start and start.note})
    _render(folder / PLAN, PLAN, values)
    return [folder / "configs" / name for name in names]


_SECOND = {"teacher": "_adapt", "student": "_retrain"}
"""Suffix of the second config of each model."""


def _sizes(facts: Survey, long_side: int) -> dict[str, Any]:
    """Return the size of the `cpu` models' images, with comments."""
    height, width = facts.size
    scale = min(1.0, long_side / max(height, width))
    size = [max(_STRIDE, round(side * scale / _STRIDE) * _STRIDE) for side in (height, width)]
    shrunk = min(size[0] / height, size[1] / width)
    target = "" if facts.target_size == facts.size else f", the target's {_text(facts.target_size)}"
    image_note = f"your images are {_text(facts.size)}{target}"
    size_note = (
        f"{image_note}, and half of your boxes are under {facts.box_side * shrunk:.0f} pixels wide at this size. "
        "Larger is slower and detects smaller objects"
    )
    return {"size": size, "image_note": image_note, "size_note": size_note}


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _report(options: InitOptions, facts: Survey, classes: list[str], written: Sequence[Path]) -> list[str]:
    plan = options.folder / PLAN
    lines = [f"{plan}: {facts.frames:,} labelled frames of {len(classes)} classes ({', '.join(classes)})"]
    lines += [f"{path}: check the guesses in its comments" for path in written]
    if facts.ignored:
        lines.append(f"Boxes of {', '.join(facts.ignored)} are left out: the models do not have these classes.")
    if facts.later_block:
        lines.append("Validation frames are a later block of the training recordings. Other recordings measure more.")
    return [*lines, "", "Next:", f"  cahqp cycle run --plan {plan} --dry-run", f"  cahqp cycle run --plan {plan}"]


def _render(path: Path, template: str, values: dict[str, Any]) -> None:
    text = environment(values["folder"], values["smoke"]).get_template(template).render(values)
    with atomic_write(path) as file:
        file.write(text)


@cache
def environment(folder: str, smoke: bool) -> Environment:
    """Return the environment of the templates. Values are written as JSON, which is YAML."""
    templates = Environment(
        loader=PackageLoader("cahqp.cycle.init"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    templates.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    templates.filters["passes"] = lambda value: f"{value:.0f}" if value >= 1.5 else f"{value:.1f}"
    more = ["smoke.yaml"] if smoke else []
    templates.filters["configs"] = lambda names: (
        json.dumps([f"{folder}/configs/{name}" for name in [*names, *more]]) if names else "[]"
    )
    return templates
