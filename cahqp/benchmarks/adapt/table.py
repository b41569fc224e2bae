"""Markdown of a benchmark's figures, and its section in a page of the docs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cahqp.benchmarks.adapt.plan import CA_HQP, MEAN_TEACHER, ORACLES, SOURCE_CONTINUED, SOURCE_ONLY
from cahqp.errors import ConfigError
from cahqp.evaluation.seeds import MIN_SEEDS
from cahqp.files import atomic_write

TOO_FEW_SEEDS = f"Fewer than {MIN_SEEDS} seeds: no evidence either way."
NO_GAIN = "The interval includes zero: the CA-HQP terms bring no proven gain here."
SHIFTS = {
    "development": "Development shift: settings are chosen by its figures, with target labels.",
    "reported": "Reported shift: its figures choose no setting.",
}


def markdown(results: Mapping[str, Any]) -> str:
    """Return the section of one benchmark.

    Args:
        results: Content of `results.json`.
    """
    parts = [_head(results), _teachers(results), _students(results), "\n".join(_conclusions(results))]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_section(page: Path, name: str, section: str) -> None:
    """Replace the section between its markers in a page, or append it.

    Raises:
        ConfigError: The page is missing, or has one marker without the other.
    """
    text = read_page(page, name)
    begin, end = markers(name)
    marked = f"{begin}\n{section}{end}"
    if begin in text:
        before, _, rest = text.partition(begin)
        text = before + marked + rest.partition(end)[2]
    else:
        text = f"{text.rstrip()}\n\n{marked}\n"
    with atomic_write(page) as file:
        file.write(text)


def read_page(page: Path, name: str) -> str:
    """Return the text of a page and check its markers.

    Raises:
        ConfigError: The page is missing, or has one marker without the other.
    """
    if not page.is_file():
        message = f"--docs {page} does not exist. Give a page such as docs/results.md."
        raise ConfigError(message)
    text = page.read_text(encoding="utf-8")
    begin, end = markers(name)
    if (begin in text) != (end in text):
        message = f"{page} contains only one of {begin} and {end}. Restore the other one, or remove both."
        raise ConfigError(message)
    return text


def markers(name: str) -> tuple[str, str]:
    """Return the comments before and after a benchmark's section."""
    return f"<!-- benchmark:{name} -->", f"<!-- /benchmark:{name} -->"


def _head(results: Mapping[str, Any]) -> str:
    steps = f"{results['steps']} of adaptation"
    if results["self_training_steps"]:
        steps += f" and {results['self_training_steps']} of self-training"
    frames = f"{results['frames']['target-test']} of the target and {results['frames']['source-test']} of the source"
    if results["source_test_is_validation"]:
        frames += ". The source frames also fix the thresholds and select the source teacher's epoch"
    readers = ["the evaluation", "the oracles", *results["ground_truth"]]
    lines = [
        f"Seeds: {', '.join(map(str, results['seeds']))}. Steps: {steps}.",
        f"Test frames per seed: {frames}.",
        "AP in %: mean ± standard deviation over seeds; [intervals] of 95 % by Student's t over seeds and a bootstrap "
        f"of {results['unit']}.",
        "Arms keep their last step; the source teacher is its best on source validation. "
        f"Target labels are read by {', '.join(readers[:-1])} and {readers[-1]} only.",
        f"Measured on {results['machine']} with cahqp {results['version']}.",
    ]
    if results["codes"] > 1:
        lines.append(f"The arms were trained by {results['codes']} versions of the code, which may behave differently.")
    if len(results["seeds"]) < MIN_SEEDS:
        lines.append(TOO_FEW_SEEDS)
    items = "\n".join(f"- {line}" for line in lines)
    about = f"{results['about']} {SHIFTS[results['shift']]}"
    return f"### {results['name']}\n\n{about}\n\n{items}\n\n```\n{results['command']}\n```"


def _teachers(results: Mapping[str, Any]) -> str:
    arms, classes = results["arms"], results["classes"]
    against = {d["arm"]: d for d in results["differences"] if d["baseline"] == MEAN_TEACHER}
    head = ["arm", "AP50 target", "mAP target", *(f"AP50 {name}" for name in classes), "gain", "vs mean-teacher"]
    head += ["gap closed", "P / R / F1", "AP50 source", "mAP source", "drop", "min", "images"]
    rows = [
        [
            name,
            _spread(arms[name]["target_ap50"]),
            _spread(arms[name]["target_map"]),
            *(_spread(arms[name]["per_class"].get(of_class)) for of_class in classes),
            _interval(arms[name]["gain"]),
            _interval(against.get(name)),
            _interval(arms[name]["closed"], sign=""),
            " / ".join(_percent(arms[name]["operating"][key]["mean"]) for key in ("precision", "recall", "f1")),
            _spread(arms[name]["source_ap50"]),
            _spread(arms[name]["source_map"]),
            _source_drop(arms, name),
            f"{arms[name]['minutes']:.1f}" if arms[name]["images"] else "-",
            f"{arms[name]['images']:,}" if arms[name]["images"] else "-",
        ]
        for name in results["order"]
    ]
    return _table(head, rows)


def _source_drop(arms: Mapping[str, Any], name: str) -> str:
    before, after = (arms[arm]["source_ap50"]["mean"] for arm in (SOURCE_ONLY, name))
    return "-" if before is None or after is None or name == SOURCE_ONLY else f"{100 * (before - after):+.1f}"


def _students(results: Mapping[str, Any]) -> str:
    rows = []
    for name in results["order"]:
        arm = results["arms"][name]
        if "student_ap50" in arm:
            closed = _share_closed(arm.get("student_closed"))
            rows.append([name, _spread(arm["student_ap50"]), _spread(arm["student_source_ap50"]), closed])
    if not rows:
        return ""
    if results["student_before"]:
        rows.insert(0, ["(the running student)", _spread(results["student_before"]), "-", "-"])
    head = ["student from the labels of", "AP50 target", "AP50 source", "gap closed"]
    return _table(head, rows) + "\n\nAn oracle's student learns from target labels: the upper end of the students' gap."


def _conclusions(results: Mapping[str, Any]) -> Iterator[str]:
    arms, oracle = results["arms"], results["oracle"]
    start = arms[SOURCE_ONLY]["target_ap50"]["mean"]
    if oracle and start is not None and arms[oracle]["target_ap50"]["mean"]:
        end = arms[oracle]["target_ap50"]["mean"]
        gap = f"the gap is {100 * (end - start):.1f} points" if end > start else "there is no gap to close"
        yield f"{SOURCE_ONLY} reaches {_percent(start / end)} % of the AP50 of {oracle}; {gap}."
        images, most = arms[oracle]["images"], max(arms[name]["images"] for name in arms if name != oracle)
        if images < 0.95 * most:
            yield (
                f"{oracle} was trained on {images:,} images, other arms on up to {most:,}: the shares of the gap are "
                "overstated."
            )
    if SOURCE_CONTINUED in arms:
        images = arms[SOURCE_CONTINUED]["images"]
        most = max(arms[name]["images"] for name in arms if name not in ORACLES)
        if images < most:
            yield (
                f"{SOURCE_CONTINUED} was trained on {images:,} source images, self-training arms on up to {most:,} of "
                "both domains."
            )
    for each in results["differences"]:
        if (each["arm"], each["baseline"]) == (CA_HQP, MEAN_TEACHER):
            verdict = f"The CA-HQP terms {'help' if each['value'] > 0 else 'hurt'} here."
            verdict = verdict if each["excludes_zero"] else NO_GAIN
            verdict = TOO_FEW_SEEDS if len(results["seeds"]) < MIN_SEEDS else verdict
            yield f"`{CA_HQP}` minus `{MEAN_TEACHER}`: {_interval(each)} points. {verdict}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def _spread(value: Mapping[str, Any] | None) -> str:
    if value is None or value["mean"] is None:
        return "-"
    return _percent(value["mean"]) + (f" ± {_percent(value['sd'])}" if value["sd"] is not None else "")


def _interval(value: Mapping[str, Any] | None, sign: str = "+") -> str:
    if value is None:
        return "-"
    return f"{100 * value['value']:{sign}.1f} [{100 * value['low']:{sign}.1f}, {100 * value['high']:{sign}.1f}]"


def _share_closed(value: Mapping[str, Any] | float | None) -> str:
    """Return a share with its interval; results of older versions have no interval."""
    return _interval(value, sign="") if isinstance(value, Mapping) else _percent(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
