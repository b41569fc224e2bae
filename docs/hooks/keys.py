"""Reference pages of config keys and plan keys, made from constructors and dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator
from typing import Any

from reference import Row, default_text, described, rows_of, slug, table, type_name

from cahqp.cli.training_arguments import all_subclasses
from cahqp.data.base import DetectionData
from cahqp.detectors.base import Detector
from cahqp.training.base import DetectionModule

_OBJECTS = {"confidence"}
"""Arguments that only Python can give."""


def config_page() -> str:
    """Return the keys of training configs, by class."""
    import cahqp.cli.lightning  # every class that a config may name
    import cahqp.detectors.huggingface.detector  # noqa: F401
    from cahqp.training.callbacks.alarms import Alarms
    from cahqp.training.callbacks.ema import EMA

    lines = [
        "# Config keys",
        "",
        "For users who write or change a config of `cahqp fit`. The configs in `configs/` and those that `cahqp init` "
        "writes are complete examples. Each key is also an option: `model.init_args.weights` is `--model.weights`.",
        "",
        "| section | contents |",
        "|---|---|",
        "| `model` | `class_path`, one of the [models](#models), and its keys under `init_args` |",
        "| `model.init_args.detector` | `class_path`, one of the [detectors](#detectors), and its `init_args` |",
        "| `data` | `class_path`, one of the [kinds of data](#data), and its `init_args` |",
        "| `trainer` | keys of Lightning's Trainer, such as `max_epochs`, `accelerator` and `precision` |",
        "| `ema`, `alarms` | [averaged weights](#ema) and [alarms](#alarms) |",
        "| `seed`, `output`, `wandb`, `example_images` | as the options of [`cahqp fit`](train.md#cahqp-fit) |",
    ]
    sections = (("Models", DetectionModule), ("Detectors", Detector), ("Data", DetectionData))
    for title, base in sections:
        lines += ["", f"## {title}"]
        for kind in all_subclasses(base):
            if not inspect.isabstract(kind) and kind is not base and kind.__module__.startswith("cahqp."):
                lines += ["", f"### {kind.__name__}", "", first_line(kind), "", *table(_rows(kind), "key")]
    lines += ["", "## EMA", "", first_line(EMA), "", *table(_rows(EMA, "ema."), "key")]
    lines += ["", "## Alarms", "", first_line(Alarms), "", *table(_rows(Alarms, "alarms."), "key")]
    return "\n".join([*lines, ""])


def plan_page() -> str:
    """Return the keys of plans, by section."""
    from cahqp.cycle.plan import CyclePlan
    from cahqp.cycle.rounds.plan import RoundsPlan

    lines = [
        "# Plan keys",
        "",
        "For users who write or change a plan of `cahqp cycle run`. [The cycle](../cycle.md) and "
        "[many rounds](../rounds.md) explain how the stages use them.",
    ]
    sections: dict[str, type[Any]] = {}
    for title, plan in (("One cycle", CyclePlan), ("Many rounds", RoundsPlan)):
        lines += ["", f"## {title}", "", first_line(plan), "", *table(_linked(plan, sections), "key")]
    for name, kind in sections.items():
        lines += ["", f"## {name}", "", first_line(kind), "", *table(rows_of(kind), "key")]
    return "\n".join([*lines, ""])


def _linked(plan: type[Any], sections: dict[str, type[Any]]) -> Iterator[Row]:
    """Yield the rows of a plan, and collect the dataclasses of its sections."""
    hints = typing.get_type_hints(plan)
    for name, kind, default, text in rows_of(plan):
        section = _dataclass(hints[name])
        if section is None:
            yield name, kind, default, text
        else:
            sections[section.__name__] = section
            yield name, kind.replace(section.__name__, f"[{section.__name__}](#{slug(section.__name__)})"), "", text


def _rows(kind: type[Any], prefix: str = "") -> Iterator[Row]:
    """Yield a row for each constructor argument of a class and its bases; settings are expanded to dotted keys."""
    texts = described(kind)
    for name, (hint, default) in _arguments(kind).items():
        settings = _dataclass(hint)
        if settings is not None:
            yield from ((f"{prefix}{name}.{key}", *rest) for key, *rest in rows_of(settings))
        elif name not in _OBJECTS:
            yield f"{prefix}{name}", type_name(hint), default_text(default), texts.get(name, "")


def _arguments(kind: type[Any]) -> dict[str, tuple[Any, Any]]:
    """Return type and default of each argument, those that `**kwargs` passes on to a base included."""
    found: dict[str, tuple[Any, Any]] = {}
    for owner in kind.__mro__:
        constructor = vars(owner).get("__init__")
        if constructor is None or not owner.__module__.startswith("cahqp."):
            continue
        hints = typing.get_type_hints(constructor)
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        for each in parameters:
            if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL):
                found.setdefault(each.name, (hints.get(each.name, Any), each.default))
        if all(each.kind is not each.VAR_KEYWORD for each in parameters):
            break
    return found


def _dataclass(hint: Any) -> type[Any] | None:
    """Return the dataclass in a type; `None` if there is none."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint
    if typing.get_origin(hint) in (list, dict, tuple):
        return next((kind for kind in map(_dataclass, typing.get_args(hint)) if kind is not None), None)
    return next((kind for kind in map(_dataclass, typing.get_args(hint)) if kind is not None), None)


def first_line(kind: type[Any]) -> str:
    """Return the first paragraph of a docstring."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
