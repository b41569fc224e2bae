"""A benchmark's figures as Markdown, and its section in a page of the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cahqp.benchmarks.adapt.plan import CA_HQP, MEAN_TEACHER, ORACLES, SOURCE_CONTINUED, SOURCE_ONLY
from cahqp.errors import ConfigError
from cahqp.evaluation.seeds import FEWEST_SEEDS
from cahqp.files import atomic_write

FEW = f"Fewer than {FEWEST_SEEDS} seeds: no evidence either way."
NO_GAIN = "The interval includes zero: the CA-HQP terms bring no proven gain here."


def markdown(found: Mapping[str, Any], command: str, classes: Sequence[str] = ()) -> str:
    """Return the tables of one benchmark.

    Args:
        found: From `benchmark_results.results`.
        command: What makes them again.
        classes: Classes whose AP50 stands beside the mean.
    """
    parts = [_head(found, command), _teachers(found, classes), _students(found), _sentences(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def into_docs(page: Path, name: str, section: str) -> None:
    """Put a section between its markers in a page; at its end, where the page does not have them.

    Raises:
        ConfigError: The page is missing, or has one marker without the other.
    """
    text = read_page(page, name)
    begin, end = markers(name)
    whole = f"{begin}\n{section}{end}"
    if begin in text:
        before, _, rest = text.partition(begin)
        text = before + whole + rest.partition(end)[2]
    else:
        text = f"{text.rstrip()}\n\n{whole}\n"
    with atomic_write(page) as file:
        file.write(text)


def read_page(page: Path, name: str) -> str:
    """Return the text of a page that a section can be put into.

    Raises:
        ConfigError: The page is missing, or has one marker without the other.
    """
    if not page.is_file():
        message = f"--docs {page} does not exist. Give a page such as docs/results.md."
        raise ConfigError(message)
    text = page.read_text(encoding="utf-8")
    begin, end = markers(name)
    if (begin in text) != (end in text):
        message = f"{page} has one of {begin} and {end}, not both. Mend it by hand first."
        raise ConfigError(message)
    return text


def markers(name: str) -> tuple[str, str]:
    """Return the comments between which a benchmark's section stands."""
    return f"<!-- benchmark:{name} -->", f"<!-- /benchmark:{name} -->"


def _head(found: Mapping[str, Any], command: str) -> str:
    kind = (
        "Development shift: settings are chosen on it, with its labels."
        if found["shift"] == "development"
        else "Reported shift: no setting is chosen by its figures."
    )
    validation = found["source_test_is_validation"]
    source = "validation" if validation else "test"
    chose = "; these also fix the thresholds, and chose among the source teacher's epochs" if validation else ""
    self_training = found.get("self_training_steps")  # a file of an older version has none
    steps = f"{found['steps']} steps of adaptation" + (f" and {self_training} of refit" if self_training else "")
    readers: list[str] = ["the evaluation", "the oracles", *found.get("ground_truth", [])]
    told = (
        f"{found['about']} {kind} Seeds {_list(found['seeds'])}; {steps}; "
        f"{found['frames']['target-test']} target test frames and {found['frames']['source-test']} source {source} "
        f"frames a seed{chose}. "
        f"Intervals of 95 % are of Student's t over seeds and of draws of {found['unit']}. Arms keep "
        "their last step, without any label; the source's teacher is its best on source validation. Target labels are "
        f"read by {', '.join(readers[:-1])} and {readers[-1]} alone. "
        f"AP in %, mean and standard deviation over seeds. Measured on {found['machine']}, cahqp {found['version']}."
    )
    codes = found.get("codes", 1)
    told += (
        f" Its arms were trained by {codes} states of the code, which may differ in what they do." if codes > 1 else ""
    )
    told += f" {FEW}" if len(found["seeds"]) < FEWEST_SEEDS else ""
    return f"### {found['name']}\n\n{told}\n\n```\n{command}\n```"


def _teachers(found: Mapping[str, Any], classes: Sequence[str]) -> str:
    arms = found["arms"]
    start = arms[SOURCE_ONLY]["source_ap50"]["mean"]
    against = {d["arm"]: d for d in found["differences"] if d["baseline"] == MEAN_TEACHER}
    head = ["arm", "AP50 target", "mAP target", *(f"AP50 {name}" for name in classes), "gain", "vs mean-teacher"]
    head += ["gap closed", "P / R / F1", "AP50 source", "mAP source", "drop", "min", "images"]
    rows = []
    for name in found["order"]:
        arm = arms[name]
        drop = None if start is None or arm["source_ap50"]["mean"] is None else start - arm["source_ap50"]["mean"]
        rows.append(
            [
                name,
                _spread(arm["target_ap50"]),
                _spread(arm["target_map"]),
                *(_spread(arm["per_class"].get(each)) for each in classes),
                _interval(arm["gain"]),
                _interval(against.get(name)),
                _interval(arm["closed"], sign=""),
                " / ".join(_percent(arm["operating"][key]["mean"]) for key in ("precision", "recall", "f1")),
                _spread(arm["source_ap50"]),
                _spread(arm["source_map"]),
                "-" if drop is None or name == SOURCE_ONLY else f"{100 * drop:+.1f}",
                f"{arm['minutes']:.1f}" if arm["images"] else "-",
                f"{arm['images']:,}" if arm["images"] else "-",
            ]
        )
    return _table(head, rows)


def _students(found: Mapping[str, Any]) -> str:
    ordered = [(name, found["arms"][name]) for name in found["order"]]
    rows = [
        [name, _spread(arm["student_ap50"]), _spread(arm["student_source_ap50"]), _closed(arm.get("student_closed"))]
        for name, arm in ordered
        if "student_ap50" in arm
    ]
    if not rows:
        return ""
    if found["student_before"]:
        rows.insert(0, ["(the running student)", _spread(found["student_before"]), "-", "-"])
    head = ["student from the labels of", "AP50 target", "AP50 source", "gap closed"]
    return _table(head, rows) + "\n\nAn oracle's student learns from the target's own labels: the end of its gap."


def _sentences(found: Mapping[str, Any]) -> str:
    arms, oracle, told = found["arms"], found["oracle"], []
    start = arms[SOURCE_ONLY]["target_ap50"]["mean"]
    if oracle and start is not None and arms[oracle]["target_ap50"]["mean"]:
        top = arms[oracle]["target_ap50"]["mean"]
        gap = f"the gap is {100 * (top - start):.1f} points" if top > start else "there is no gap that could be closed"
        told.append(f"Source-only stands at {_percent(start / top)} % of {oracle}; {gap}.")
        most = max(arms[name]["images"] for name in found["order"] if name != oracle)
        if arms[oracle]["images"] < 0.95 * most:
            told.append(
                f"{oracle} looked at {arms[oracle]['images']:,} images, others at up to {most:,}, which flatters their "
                "share of the gap."
            )
    if SOURCE_CONTINUED in arms:
        own = arms[SOURCE_CONTINUED]["images"]
        most = max(arms[name]["images"] for name in found["order"] if name not in ORACLES)
        if own < most:
            told.append(
                f"{SOURCE_CONTINUED} looked at {own:,} images of the source, self-training at up to {most:,} of both "
                "domains."
            )
    for each in found["differences"]:
        if (each["arm"], each["baseline"]) == (CA_HQP, MEAN_TEACHER):
            verdict = NO_GAIN if not each["excludes_zero"] else _direction(each["value"])
            verdict = FEW if len(found["seeds"]) < FEWEST_SEEDS else verdict
            told.append(f"`{CA_HQP}` minus `{MEAN_TEACHER}`: {_interval(each)} points. {verdict}")
    return "\n".join(told)


def _direction(value: float) -> str:
    return "The CA-HQP terms help here." if value > 0 else "The CA-HQP terms hurt here."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(value: Mapping[str, Any] | None) -> str:
    if value is None or value["mean"] is None:
        return "-"
    return _percent(value["mean"]) + (f" ± {_percent(value['sd'])}" if value["sd"] is not None else "")


def _interval(value: Mapping[str, Any] | None, sign: str = "+") -> str:
    if value is None:
        return "-"
    return f"{100 * value['value']:{sign}.1f} [{100 * value['low']:{sign}.1f}, {100 * value['high']:{sign}.1f}]"


def _closed(value: Mapping[str, Any] | float | None) -> str:
    """Return a share with its interval; files of an older version have none."""
    return _interval(value, sign="") if isinstance(value, Mapping) else _percent(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
