"""How far a cycle is."""

from __future__ import annotations

import csv
from pathlib import Path

from cahqp import files
from cahqp.cycle import summary
from cahqp.cycle.rounds.plan import has_rounds
from cahqp.cycle.rounds.run import Rounds
from cahqp.cycle.rounds.run import choose as choose_rounds
from cahqp.cycle.run import Cycle, choose
from cahqp.cycle.stages import CYCLE
from cahqp.runs import locks, process
from cahqp.runs.executor import duration
from cahqp.runs.state import Stage, State


def status(plan: Path, output: Path | None = None) -> None:
    """Say of each stage whether it is done, under way, partial or to do, how long it took, and what to run next.

    Args:
        plan: The YAML file.
        output: Directory of the cycle. Default `runs/<name>`.
    """
    print("\n".join(lines(plan, output)))


def lines(plan: Path, output: Path | None = None) -> list[str]:
    """Return what `status` prints. Nothing is changed."""
    begun = output / CYCLE if output else None
    said = files.read_json(begun) if begun and begun.is_file() else {}
    cycle: Cycle | Rounds
    if has_rounds(plan):
        cycle = choose_rounds(plan, output, said.get("seed"), said.get("replay", True))
    else:
        cycle = choose(plan, output, said.get("seed"))
    state = State(cycle.root)
    unsettled: list[Stage] = []
    told = []
    for stage in cycle.stages:
        says = _says(stage, state, unsettled)
        if says != "done":
            unsettled.append(stage)
        record = state.records.get(stage.name)
        seconds = duration(record.seconds) if record and record.seconds else ""
        told.append((stage.name, says, seconds))
    width = max(len(name) for name, _, _ in told)
    rows = [f"{name:<{width}}  {seconds:>12}  {says}" for name, says, seconds in told]
    return [str(cycle.root), *rows, "", *_next(cycle, unsettled)]


def _says(stage: Stage, state: State, unsettled: list[Stage]) -> str:
    if locks.is_held(stage.output):
        return f"under way{_how_far(stage, state)}"
    waits = [other.name for other in unsettled if any(other.output in (p, *p.parents) for p in stage.inputs)]
    if waits:
        return f"waits for {', '.join(waits)}"
    key = state.key(stage)
    if state.is_done(stage, key):
        return "done"
    if state.is_stale(stage, key):
        return "to do again: its inputs have changed"
    return f"partial{_how_far(stage, state)}" if stage.partial.exists() else "to do"


def _how_far(stage: Stage, state: State) -> str:
    metrics = stage.partial / "metrics.csv"
    if metrics.is_file():
        with metrics.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if rows and {"epoch", "step"} <= rows[-1].keys():
            return f": epoch {rows[-1]['epoch']}, step {rows[-1]['step']}"
    said = process.last_lines(state.root / "logs" / f"{stage.name}.log", 1)
    return f": {said[0]}" if said else ""


def _next(cycle: Cycle | Rounds, unsettled: list[Stage]) -> list[str]:
    if locks.is_held(cycle.root):
        return ["A process is at work on it."]
    if not unsettled:
        return summary.round_lines(cycle.root) if isinstance(cycle, Rounds) else summary.lines(cycle.root)
    return [f"Next: {unsettled[0].name}", f"  {cycle.command}"]
