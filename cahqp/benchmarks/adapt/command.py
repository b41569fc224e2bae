"""`cahqp benchmark adapt`: arms and seeds as cached stages, and a table of what helps and what does not."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser

from cahqp.benchmarks.adapt.checks import check_files
from cahqp.benchmarks.adapt.plan import Plan, read_plan
from cahqp.benchmarks.adapt.results import results
from cahqp.benchmarks.adapt.stages import Bench, Run
from cahqp.benchmarks.adapt.table import into_docs, markdown, read_page
from cahqp.errors import ConfigError, check_numbers
from cahqp.files import atomic_write, write_json
from cahqp.runs import locks
from cahqp.runs.executor import duration, run_stages
from cahqp.runs.state import State

RESULTS, TABLE = "results.json", "table.md"


def command(arguments: list[str]) -> None:
    """Run `cahqp benchmark adapt`."""
    parser = ArgumentParser(
        prog="cahqp benchmark adapt", exit_on_error=False, description=(adapt.__doc__ or "").strip()
    )
    parser.add_argument("--plan", nargs="+", type=Path, required=True, help="YAML files; see configs/benchmark.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="In the place of the plans' own.")
    parser.add_argument("--arms", nargs="+", type=str, default=[], help="Arms and variants to keep; all by default.")
    parser.add_function_arguments(adapt, skip={"plan", "seeds", "arms"}, as_group=False)
    given = ["--dry_run=true" if text == "--dry-run" else text for text in arguments[1:]]
    adapt(**parser.parse_args(given).as_dict())


def adapt(
    plan: list[Path],
    seeds: list[int],
    arms: list[str],
    output: Path = Path("runs/benchmark"),
    data: Path | None = None,
    backbone: Path | None = None,
    docs: Path | None = None,
    jobs: int = 1,
    students: bool = True,
    dry_run: bool = False,
) -> None:
    """Compare ways to adapt a teacher, over seeds, with intervals.

    Every arm of a seed starts from the same source weights. Killed or failed, the same command goes on from there;
    what plans have in common is made once.

    Args:
        plan: YAML files.
        seeds: In the place of the plans' own.
        arms: Arms and variants to keep.
        output: Directory of all stages and tables, shared by all plans.
        data: Folder that stands for `data:` in a plan.
        backbone: Pretrained weights of the teacher's backbone, for the plans that need them.
        docs: Page whose section of each plan is written anew, with the figures beside it as `benchmark/NAME.json`.
        jobs: Stages at a time. Two on two cores are faster than one, but the minutes in the tables are then those of
            one thread beside another process.
        students: Retrain the students that a plan names; a comparison of teachers alone takes two thirds of the time.
        dry_run: Print the stages with estimated minutes and start nothing.
    """
    check_numbers(shares={}, counts={"--jobs": jobs})
    plans = {path: read_plan(path, seeds, arms, data, backbone) for path in plan}
    if not students:
        plans = {path: replace(each, students=[]) for path, each in plans.items()}
    if len({each.name for each in plans.values()}) != len(plans):
        message = "Two of the plans have the same name: each names a folder of tables."
        raise ConfigError(message)
    for each in plans.values():
        check_files(each)
        if docs is not None:
            read_page(docs, each.name)
    bench = Bench(output)
    runs = {path: bench.add(each) for path, each in plans.items()}
    if dry_run:
        print("\n".join(_dry(bench, plans, runs)))
        return
    locks.acquire(output)
    try:
        # Plan by plan, so that the first table is there early.
        for path, each in plans.items():
            stages = bench.needed(runs[path])
            run_stages(output, stages, jobs)
            flags = _flags(each, path, seeds, arms, data) + ([] if students else ["--students", "false"])
            told = shlex.join(["cahqp", "benchmark", "adapt", *flags])
            print("\n" + _write(each, runs[path], output, told, docs))
    finally:
        locks.release(output)


def _write(plan: Plan, runs: Sequence[Run], output: Path, told: str, docs: Path | None) -> str:
    found = results(plan, runs, output)
    text = markdown(found, told, plan.classes)
    folder = output / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULTS, found | {"command": told, "classes": plan.classes})
    with atomic_write(folder / TABLE) as file:
        file.write(text)
    if docs is not None:
        into_docs(docs, plan.name, text)
        write_json(docs.parent / "benchmark" / f"{plan.name}.json", found | {"command": told, "classes": plan.classes})
    return f"{text}\n{folder / TABLE}"


def _flags(plan: Plan, path: Path, seeds: Sequence[int], arms: Sequence[str], data: Path | None) -> list[str]:
    flags = ["--plan", str(path)]
    flags += ["--seeds", *map(str, seeds)] if seeds else []
    flags += ["--arms", *arms] if arms else []
    # Where one's own files lie is nobody else's business: the docs say which are meant.
    flags += [] if data is None else ["--data", "FOLDER"]
    return flags + (["--backbone", "FILE"] if plan.backbone else [])


def _dry(bench: Bench, plans: dict[Path, Plan], runs: dict[Path, list[Run]]) -> list[str]:
    """Return one line for each stage that is left, and the estimated time of each plan and of all together."""
    state, told, total, lines = State(bench.root), set(), 0.0, []
    for path, plan in plans.items():
        left = [s for s in bench.needed(runs[path]) if not state.is_done(s, state.key(s)) and s.name not in told]
        told |= {stage.name for stage in left}
        seconds = sum(bench.seconds[stage.name] for stage in left)
        lines += [f"{bench.seconds[s.name] / 60:7.1f} min  {shlex.join(['cahqp', *s.arguments])}" for s in left]
        lines.append(f"{plan.name}: {len(left)} stages left, about {duration(seconds)} on two cores\n")
        total += seconds
    return [*lines, f"All together: {len(told)} stages, about {duration(total)}. What plans share counts once."]
