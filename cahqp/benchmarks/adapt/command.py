"""`cahqp benchmark adapt`: arms and seeds as cached stages, and a table of their figures."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cahqp.benchmarks.adapt.checks import check_files
from cahqp.benchmarks.adapt.graph import StageGraph
from cahqp.benchmarks.adapt.page import add_results, read_page
from cahqp.benchmarks.adapt.plan import BenchmarkPlan
from cahqp.benchmarks.adapt.plan_reader import read_benchmark_plan
from cahqp.benchmarks.adapt.results import results
from cahqp.benchmarks.adapt.stages import ArmRun, add_plan
from cahqp.benchmarks.adapt.table import markdown
from cahqp.benchmarks.options import AdaptBenchmarkOptions
from cahqp.errors import ConfigError
from cahqp.files import atomic_write, write_json
from cahqp.runs import locks
from cahqp.runs.executor import duration, run_stages
from cahqp.runs.options import flags
from cahqp.runs.state import State

RESULTS, TABLE = "results.json", "table.md"


def adapt(options: AdaptBenchmarkOptions) -> None:
    """Run `cahqp benchmark adapt`.

    Raises:
        ConfigError: A plan or an option is invalid, or two plans have the same name.
        DataError: A file of frames is unsuitable.
        RunError: A stage failed.
    """
    plans = {path: read_benchmark_plan(path, options) for path in options.plan}
    if len({plan.name for plan in plans.values()}) != len(plans):
        message = "Two plans have the same name. Rename one: the name is also its folder below --output."
        raise ConfigError(message)
    for plan in plans.values():
        check_files(plan)
    if options.docs is not None:
        read_page(options.docs)
    graph = StageGraph(options.output)
    runs = {path: add_plan(graph, plan) for path, plan in plans.items()}
    if options.dry_run:
        print("\n".join(_estimates(graph, plans, runs, options.jobs)))
        return
    locks.acquire(options.output)
    try:
        for path, plan in plans.items():  # plan by plan, for an early first table
            run_stages(options.output, graph.stages_of(run.measured for run in runs[path]), options.jobs)
            print("\n" + _write_results(plan, runs[path], _command_line(path, plan, options), options))
    finally:
        locks.release(options.output)


def _write_results(plan: BenchmarkPlan, runs: Sequence[ArmRun], command: str, options: AdaptBenchmarkOptions) -> str:
    figures = results(plan, runs, options.output) | {"command": command, "classes": plan.classes}
    text = markdown(figures)
    folder = options.output / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULTS, figures)
    with atomic_write(folder / TABLE) as file:
        file.write(text)
    if options.docs is not None:
        add_results(options.docs, figures)
    return f"{text}\n{folder / TABLE}"


def _command_line(path: Path, plan: BenchmarkPlan, options: AdaptBenchmarkOptions) -> str:
    """Return the command for the docs: private paths are replaced by placeholders."""
    needed = plan.models.values()
    private: dict[str, Any] = {
        "data": Path("FOLDER") if options.data else None,
        "backbone": Path("FILE") if any(model.backbone for model in needed) else None,
        "start": Path("MODEL") if any(model.start for model in needed) else None,
    }
    shared = replace(options, **private, plan=[path], docs=None, jobs=1)
    return shlex.join(["cahqp", "benchmark", "adapt", *flags(replace(shared, output=AdaptBenchmarkOptions.output))])


def _estimates(
    graph: StageGraph, plans: Mapping[Path, BenchmarkPlan], runs: Mapping[Path, Sequence[ArmRun]], jobs: int
) -> list[str]:
    """Return one line for each stage that is left, and the estimated duration of each plan and of all together.

    Costs are those of one core, and each of `jobs` stages at a time has one.
    """
    state, listed, total, lines = State(graph.root), set[str](), 0.0, []
    for path, plan in plans.items():
        required = graph.stages_of(run.measured for run in runs[path])
        stages = [stage for stage in required if not state.is_done(stage, state.key(stage))]
        left = [stage for stage in stages if stage.name not in listed]
        listed |= {stage.name for stage in left}
        seconds = sum(graph.seconds[stage.name] for stage in left)
        lines += [f"{graph.seconds[s.name] / 60:7.1f} min  {shlex.join(['cahqp', *s.arguments])}" for s in left]
        lines.append(f"{plan.name}: {len(left)} stages left, about {duration(seconds / jobs)} with --jobs {jobs}\n")
        total += seconds
    return [
        *lines,
        f"All together: {len(listed)} stages, {duration(total / jobs)} at --jobs {jobs}. Shared stages count once.",
    ]
