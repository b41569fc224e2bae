"""The page of many rounds: what the running student reaches in each domain, what drifted, and what the gate decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahqp.files import natural_key, read_json
from cahqp.reports.html import Markup, document, element, folded, join, section, table
from cahqp.reports.labels import labelled_frames, read_labels
from cahqp.reports.tables import percent
from cahqp.reports.trend import Line, lines

_PICTURES = 3  # rounds whose frames are shown: each frame is embedded, and a page of a year should still open


@dataclass(frozen=True)
class Turn:
    """One round, or one group of cameras in it.

    Attributes:
        name: Of its directory, below the cycle's.
        path: Its directory.
        models: AP50 by model and domain, in 0..1.
        decision: What was decided; empty while nothing is.
    """

    name: str
    path: Path
    models: Mapping[str, Mapping[str, float | None]]
    decision: Mapping[str, Any]

    @property
    def published(self) -> bool:
        """Whether the candidate was published."""
        return bool(self.decision.get("published"))

    @property
    def running(self) -> Mapping[str, float | None]:
        """AP50 of the student that runs after it, by domain."""
        return self.models["student-new" if self.published else "student-old"]


def is_rounds(run: Path) -> bool:
    """Say whether a directory is that of a plan of rounds."""
    return (run / "cycle.json").is_file() and bool(read_json(run / "cycle.json").get("rounds"))


def compose_rounds(run: Path) -> Markup:
    """Return the page of a plan of rounds. What is not made yet is left out.

    Args:
        run: The cycle's directory.
    """
    name = str(read_json(run / "cycle.json")["name"])
    turns = read_turns(run)
    count = f"{len(turns)} round{'s' * (len(turns) != 1)} measured, {sum(t.published for t in turns)} published."
    head = element("header", element("h1", f"Cycle {name}"), element("p", count, class_="soft"))
    parts = [_domains(turns), _drift(run), _gate(turns), _pictures(turns)]
    if not any(parts):
        parts = [element("p", "No round has been measured yet.", class_="missing")]
    return document(f"cahqp: {name}", head, *parts)


def read_turns(run: Path) -> list[Turn]:
    """Return the rounds that have been measured, in their order."""
    found = []
    for path in sorted(run.glob("round-*/**/evaluate/metrics.json"), key=_in_order):
        directory = path.parents[1]
        models = {
            model: {frames: figures["ap50"] for frames, figures in sets.items()}
            for model, sets in read_json(path)["models"].items()
        }
        decided = directory / "published" / "decision.json"
        decision = read_json(decided) if decided.is_file() else {}
        found.append(Turn(directory.relative_to(run).as_posix(), directory, models, decision))
    return found


def _domains(turns: Sequence[Turn]) -> Markup:
    if not turns:
        return Markup("")
    domains = list(turns[0].running)
    start = turns[0].models["student-old"]
    series = {
        domain: [start.get(domain), *(turn.running.get(domain) for turn in turns)] for domain in domains
    }  # fmt: skip
    head = ["AP50 in %, running student", *domains, "mean"]
    rows = [["at the start", *_cells([values[0] for values in series.values()])]]
    for number, turn in enumerate(turns, 1):
        how = "published" if turn.published else "kept" if turn.decision else "not decided"
        rows.append([f"{turn.name} ({how})", *_cells([values[number] for values in series.values()])])
    forgotten = [_worst_fall(values) for values in series.values()]
    rows.append(["largest fall below its best", *(percent(fall) for fall in forgotten), ""])
    drawn = lines([Line(domain, _points(values)) for domain, values in series.items()], "round", "AP50 in %", 100.0)
    candidates = [
        [turn.name, *_cells([turn.models["student-new"].get(domain) for domain in domains])] for turn in turns
    ]
    teachers = [
        [turn.name, *_cells([turn.models["teacher-adapted"].get(domain) for domain in domains])]
        for turn in turns
        if "teacher-adapted" in turn.models
    ]
    return section(
        "What the running student reaches",
        drawn,
        table(head, rows),
        folded("The candidates", table(["candidate", *domains, "mean"], candidates)),
        *([folded("The adapted teachers", table(["teacher", *domains, "mean"], teachers))] if teachers else []),
    )


def _cells(values: Sequence[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    return [*(percent(value) for value in values), percent(sum(known) / len(known) if known else None)]


def _points(values: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(float(number), value) for number, value in enumerate(values) if value is not None]


def _worst_fall(values: Sequence[float | None]) -> float:
    """Return how far a value ever lay below the best before it, 0 or more."""
    best, fall = float("-inf"), 0.0
    for value in values:
        if value is not None:
            best = max(best, value)
            fall = max(fall, best - value)
    return fall


def _drift(run: Path) -> Markup:
    rows: list[list[str]] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    at: dict[str, int] = {}
    for path in sorted(run.glob("round-*/drift/drift.json"), key=_in_order):
        found = read_json(path)
        for camera, said in found["cameras"].items():
            for window in said["windows"]:
                at[camera] = at.get(camera, -1) + 1
                look = window["references"].get("source")
                if look:
                    curves.setdefault(camera, []).append((float(at[camera]), look["features"]["distance"]))
            verdict = said["verdict"] + (f": {said['fault']}" if said["fault"] else "")
            rows.append([f"{path.parts[-3]}, {camera}", verdict, said["nearest"] or "-", str(said["frames"])])
        rows += [[f"{path.parts[-3]}, {camera}", "silent", "-", "0"] for camera in found["silent"]]
    if not rows:
        return Markup("")
    note = "Squared MK-MMD of each window's features to the source's: about 0 is the same, larger is farther away."
    return section(
        "Drift",
        element("p", note, class_="soft"),
        lines([Line(camera, points) for camera, points in curves.items()], "window", "distance", 1.0),
        folded("By round and camera", table(["", "verdict", "nearest known", "frames"], rows)),
    )


def _gate(turns: Sequence[Turn]) -> Markup:
    said = [
        element(
            "p",
            f"{'✓' if turn.published else '●'} {turn.name}: {turn.decision.get('reason', '')}",
            class_=f"verdict {'good' if turn.published else 'wait'}",
        )
        for turn in turns
        if turn.decision
    ]
    return section("What the gate decided", *said)


def _pictures(turns: Sequence[Turn]) -> Markup:
    shown = []
    for turn in turns[-_PICTURES:]:
        labels = read_labels(turn.path / "relabel")
        if labels is not None:
            shown += [element("h3", turn.name), labelled_frames(None, labels)]
    return section("Labels of the last rounds", join(shown)) if shown else Markup("")


def _in_order(path: Path) -> list[tuple[int, int, str]]:
    return natural_key(path.as_posix())
