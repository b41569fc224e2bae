"""`cahqp cycle status`: progress of a cycle."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from cahqp.cycle import summary
from cahqp.cycle.opening import Cycle, open_cycle
from cahqp.cycle.rounds.plan import RoundsPlan
from cahqp.cycle.stages import read_begun
from cahqp.runs import locks, process
from cahqp.runs.executor import duration
from cahqp.runs.state import Stage, State


@dataclass(frozen=True, kw_only=True)
class CycleStatusOptions:
    """Print the state and the time of each stage, and the next command.

    Attributes:
        plan: YAML file of the plan.
        output: Directory of the cycle. Default: `runs/<name>`.
    """

    plan: Path
    output: Path | None = None


def status(options: CycleStatusOptions) -> None:
    """Run `cahqp cycle status`."""
    print("\n".join(lines(options.plan, options.output)))


def lines(plan: Path, output: Path | None = None) -> list[str]:
    """Return the lines that `status` prints. Nothing is changed."""
    begun = read_begun(output)
    cycle = open_cycle(plan, output, begun.seed, replay=begun.replay)
    state = State(cycle.root)
    unfinished: list[Stage] = []
    rows = []
    for stage in cycle.stages:
        text = _describe(stage, state, unfinished)
        if text != "done":
            unfinished.append(stage)
        record = state.records.get(stage.name)
        rows.append((stage.name, duration(record.seconds) if record and record.seconds else "", text))
    width = max(len(name) for name, _, _ in rows)
    table = [f"{name:<{width}}  {seconds:>12}  {text}" for name, seconds, text in rows]
    return [str(cycle.root), *table, "", *_next(cycle, unfinished)]


def _describe(stage: Stage, state: State, unfinished: list[Stage]) -> str:
    if locks.is_held(stage.output):
        return f"running{_progress(stage, state)}"
    missing = [other.name for other in unfinished if any(other.output in (p, *p.parents) for p in stage.inputs)]
    if missing:
        return f"waits for {', '.join(missing)}"
    key = state.key(stage)
    if state.is_done(stage, key):
        return "done"
    if state.is_stale(stage, key):
        return "to do again: its inputs have changed"
    return f"partial{_progress(stage, state)}" if stage.partial.exists() else "to do"


def _progress(stage: Stage, state: State) -> str:
    metrics = stage.partial / "metrics.csv"
    if metrics.is_file():
        with metrics.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if rows and {"epoch", "step"} <= rows[-1].keys():
            return f": epoch {rows[-1]['epoch']}, step {rows[-1]['step']}"
    last = process.last_lines(state.root / "logs" / f"{stage.name}.log", 1)
    return f": {last[0]}" if last else ""


def _next(cycle: Cycle, unfinished: list[Stage]) -> list[str]:
    if locks.is_held(cycle.root):
        return ["A process is running this cycle."]
    if not unfinished:
        return (summary.round_lines if isinstance(cycle.plan, RoundsPlan) else summary.lines)(cycle.root)
    return [f"Next: {unfinished[0].name}", f"  {cycle.command}"]
