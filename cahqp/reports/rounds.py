"""Report of a plan with rounds: accuracy of the running student by domain, drift and gate decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahqp.files import natural_key
from cahqp.reports.charts import line_chart
from cahqp.reports.inputs import read_object
from cahqp.reports.labels import compare_labels, read_labels
from cahqp.reports.records import CycleRecord, DriftRecord, EvaluationRecord
from cahqp.reports.warnings import collapsed_classes
from cahqp.runs.evidence import Verdict

_MAX_LABEL_ROUNDS = 3  # each example frame is embedded, and the page of a year must still open


@dataclass(frozen=True)
class RoundSummary:
    """One round, or one group of cameras in it.

    Attributes:
        name: Path of its directory, relative to the cycle's.
        models: AP50 in 0..1 by model and domain.
        decision: Content of `decision.json`; empty before the gate.
    """

    name: str
    models: Mapping[str, Mapping[str, float | None]]
    decision: Mapping[str, Any]

    @property
    def published(self) -> bool:
        """Whether the candidate was published."""
        return bool(self.decision.get("published"))

    @property
    def running(self) -> Mapping[str, float | None]:
        """AP50 by domain of the student that runs after the round."""
        return self.models["student-new" if self.published else "student-old"]


def is_rounds_cycle(run: Path) -> bool:
    """Return whether a directory belongs to a plan with rounds."""
    return bool(read_object(run / "cycle.json", CycleRecord).get("rounds"))


def describe_rounds(run: Path) -> dict[str, Any]:
    """Return the variables of `rounds.html.j2`. Unfinished parts are left out.

    Args:
        run: The cycle's directory.
    """
    rounds = read_round_summaries(run)
    labels = [(one.name, read_labels(run / one.name / "relabel")) for one in rounds[-_MAX_LABEL_ROUNDS:]]
    return {
        "name": str(read_object(run / "cycle.json", CycleRecord)["name"]),
        "rounds": rounds,
        "warnings": _warnings([(name, file.kept) for name, file in labels if file is not None]),
        "accuracy": _accuracy(rounds) if rounds else {},
        "drift": _drift(run),
        "labels": [(name, compare_labels(None, file)) for name, file in labels if file is not None],
    }


def _warnings(counts: Sequence[tuple[str, Mapping[str, int]]]) -> list[str]:
    """Return the classes whose labels collapse from one of the shown rounds to the next.

    Groups of cameras in one round are compared with the same group in the round before.
    """
    warnings: list[str] = []
    latest: dict[str, tuple[str, Mapping[str, int]]] = {}
    for name, kept in counts:
        group = name.partition("/")[2]
        if group in latest:
            earlier, before = latest[group]
            warnings += collapsed_classes(before, kept, f"from {earlier} to {name}")
        latest[group] = (name, kept)
    return warnings


def read_round_summaries(run: Path) -> list[RoundSummary]:
    """Return the evaluated rounds in natural order."""
    rounds = []
    for path in sorted(run.glob("round-*/**/evaluate/metrics.json"), key=lambda path: natural_key(path.as_posix())):
        directory = path.parents[1]
        models = {
            model: {frames: entry["ap50"] for frames, entry in sets.items()}
            for model, sets in read_object(path, EvaluationRecord)["models"].items()
        }
        decision = read_object(directory / "published" / "decision.json", Verdict)
        rounds.append(RoundSummary(directory.relative_to(run).as_posix(), models, decision))
    return rounds


def _accuracy(rounds: Sequence[RoundSummary]) -> dict[str, Any]:
    domains = list(rounds[0].running)
    students = [rounds[0].models["student-old"], *(one.running for one in rounds)]
    history = {domain: [student.get(domain) for student in students] for domain in domains}
    states = ["published" if one.published else "kept" if one.decision else "not decided" for one in rounds]
    titles = ["at the start", *(f"{one.name} ({state})" for one, state in zip(rounds, states, strict=True))]
    points = {
        domain: [(float(number), value) for number, value in enumerate(values) if value is not None]
        for domain, values in history.items()
    }
    drops = ["largest drop below its best", *(_largest_drop(values) for values in history.values()), ""]
    return {
        "columns": [*domains, "mean"],
        "chart": line_chart(points, 100.0),
        "running": [*(_row(*pair, domains) for pair in zip(titles, students, strict=True)), drops],
        "candidates": [_row(one.name, one.models["student-new"], domains) for one in rounds],
        "teachers": [
            _row(one.name, one.models["teacher-adapted"], domains) for one in rounds if "teacher-adapted" in one.models
        ],
    }


def _row(title: str, ap50: Mapping[str, float | None], domains: Sequence[str]) -> list[str | float | None]:
    """Return a table row: title, AP50 of each domain, mean of the known ones."""
    values = [ap50.get(domain) for domain in domains]
    known = [value for value in values if value is not None]
    return [title, *values, sum(known) / len(known) if known else None]


def _largest_drop(values: Sequence[float | None]) -> float:
    """Return the largest drop below an earlier maximum, 0 or more."""
    best, drop = float("-inf"), 0.0
    for value in values:
        if value is not None:
            best = max(best, value)
            drop = max(drop, best - value)
    return drop


def _drift(run: Path) -> dict[str, Any]:
    """Return each camera's verdict in each round, and the chart of distances to the source."""
    rows: list[list[str]] = []
    distances: dict[str, list[tuple[float, float]]] = {}
    windows: dict[str, int] = {}
    for path in sorted(run.glob("round-*/drift/drift.json"), key=lambda path: natural_key(path.as_posix())):
        content, name = read_object(path, DriftRecord), path.parts[-3]
        for camera, state in content["cameras"].items():
            for window in state["windows"]:
                number = windows[camera] = windows.get(camera, -1) + 1
                source = window["references"].get("source")
                if source:
                    distances.setdefault(camera, []).append((float(number), source["features"]["distance"]))
            verdict = state["verdict"] + (f": {state['fault']}" if state["fault"] else "")
            rows.append([f"{name}, {camera}", verdict, state["nearest"] or "-", str(state["frames"])])
        rows += [[f"{name}, {camera}", "silent", "-", "0"] for camera in content["silent"]]
    return {"rows": rows, "chart": line_chart(distances)} if rows else {}
