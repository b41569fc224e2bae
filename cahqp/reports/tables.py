"""The tables of the report: what each model reaches, and what was decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cahqp.reports.html import Markup, element, folded, join, table

NAMES = {
    "teacher-source": "Teacher, source only",
    "teacher-adapted": "Teacher, adapted",
    "mean-teacher": "Teacher, mean teacher alone",
    "ca-hqp": "Teacher, CA-HQP",
    "oracle": "Teacher, oracle (target labels)",
    "student-old": "Student, before",
    "student-new": "Student, retrained",
}
FRAMES = {"target-test": "target test", "source-val": "source validation"}
BASELINES = {"student-new": "student-old"}
"""What a model's gain is counted from, where it is not the teacher before adaptation."""

Models = Mapping[str, Mapping[str, Mapping[str, Any]]]


def verdict(decision: Mapping[str, Any]) -> Markup:
    """Return what was published and why."""
    published = bool(decision.get("published"))
    said = str(decision.get("reason") or ("Published." if published else "Not published."))
    return element("p", ("✓ " if published else "● ") + said, class_=f"verdict {'good' if published else 'wait'}")


def accuracy(models: Models, differences: Sequence[Mapping[str, Any]]) -> Markup:
    """Return AP50 of each model on each set of frames, with the gain over its baseline on the first set."""
    frames = _frames(models)
    if not frames:
        return Markup("")
    images = {name: next(sets[name]["images"] for sets in models.values() if name in sets) for name in frames}
    head = ["AP50 in %", *(f"{FRAMES.get(name, name)} ({images[name]} images)" for name in frames)]
    head.insert(2, f"gain on {FRAMES.get(frames[0], frames[0])}")
    rows = []
    for model in _ordered(models):
        cells: list[str] = [_measure(models[model].get(name, {}).get("ap50")) for name in frames]
        cells.insert(1, _gain(models, differences, model, frames[0]))
        rows.append([_title(model), *cells])
    return table(head, rows)


def per_class(models: Models) -> Markup:
    """Return AP50 of each class on each set of frames."""
    first, *others = [_classes(models, name) for name in _frames(models)]
    return join([first, folded("The same on the other frames", *others)] if others else [first])


def missing_arms(models: Models, command: str | None) -> Markup:
    """Return the command that adds the comparisons that are not in the table."""
    arms = [arm for arm in ("mean-teacher", "oracle") if not {arm, f"teacher-{arm}"} & models.keys()]
    if not arms:
        return Markup("")
    told = {"mean-teacher": "a plain mean teacher", "oracle": "the oracle, which is trained on the target's labels"}
    said = f"Not in this table: {' and '.join(told[arm] for arm in arms)}. "
    if command is None:
        return element("p", said + "Run the cycle again with --arms " + ",".join(arms) + " to add them.", class_="soft")
    how = element("pre", f"{command} --arms {','.join(arms)}", class_="command")
    return join([element("p", said + "This command adds what is missing:", class_="soft"), how])


def counts(before: Mapping[str, int] | None, after: Mapping[str, int], head: str, caption: str) -> Markup:
    """Return how often each name occurs in the labels before and after adaptation."""
    names = list(dict.fromkeys([*(before or {}), *after]))
    if before is None:
        return table([head, "after"], [[name, f"{after.get(name, 0):,}"] for name in names], caption)
    rows = [[n, f"{before.get(n, 0):,}", f"{after.get(n, 0):,}"] for n in names]
    return table([head, "before", "after"], rows, caption)


def percent(value: float | None) -> str:
    """Return a share as a figure of percent, a dash where it is not known."""
    return "-" if value is None else f"{100 * value:.1f}"


def _classes(models: Models, frames: str) -> Markup:
    ordered = [model for model in _ordered(models) if frames in models[model]]
    names = list(dict.fromkeys(name for model in ordered for name in models[model][frames].get("per_class", {})))
    objects = models[ordered[0]][frames].get("objects", {})
    head = ["AP50 in %", *(f"{name} ({objects[name]:,})" if name in objects else name for name in names)]
    rows = [[_title(m), *(percent(models[m][frames]["per_class"].get(name)) for name in names)] for m in ordered]
    caption = f"On {FRAMES.get(frames, frames)}" + (", with the number of objects" if objects else "")
    left_out = models[ordered[0]][frames].get("left_out", {})
    told = ", ".join(f"{name} ({count:,})" for name, count in left_out.items())
    note = element("p", f"Not measured, because the models do not know them: {told}.", class_="soft")
    return join([table(head, rows, caption), *([note] if told else [])])


def _frames(models: Models) -> list[str]:
    found = dict.fromkeys(name for sets in models.values() for name in sets)
    return [name for name in FRAMES if name in found] + [name for name in found if name not in FRAMES]


def _ordered(models: Models) -> list[str]:
    known = [name for key in NAMES for name in (key, f"teacher-{key}") if name in models]
    return known + [name for name in models if name not in known]


def _title(model: str) -> str:
    return NAMES.get(model) or NAMES.get(model.removeprefix("teacher-"), model)


def _measure(value: float | None) -> Markup:
    if value is None:
        return element("span", percent(None))
    bar = element("rect", class_="bar", width=round(100 * value, 1), height=10, rx=2)
    back = element("rect", class_="bar-back", width=100, height=10, rx=2)
    drawn = element("svg", back, bar, viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true")
    return element("span", drawn, percent(value), class_="measure")


def _gain(models: Models, differences: Sequence[Mapping[str, Any]], model: str, frames: str) -> Markup:
    baseline = BASELINES.get(model) or ("teacher-source" if _title(model).startswith("Teacher") else None)
    reached, before = (models.get(name, {}).get(frames, {}).get("ap50") for name in (model, baseline or ""))
    if baseline == model or reached is None or before is None:
        return element("span", "")
    gain = 100 * (reached - before)
    said = element("span", f"{gain:+.1f}", class_="up" if gain > 0 else "down")
    for known in differences:
        if (known["model"], known["baseline"], known["frames"]) == (model, baseline, frames):
            interval = f" [{100 * known['low']:+.1f}, {100 * known['high']:+.1f}]"
            said = join([said, element("span", interval, class_="soft")])
    return said
