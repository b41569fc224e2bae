"""Carry out a plan, stage by stage, from wherever it stands."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cahqp import files
from cahqp.cycle import summary
from cahqp.cycle.plan import Plan, read_plan
from cahqp.cycle.rounds.plan import has_rounds
from cahqp.cycle.stages import Stage, Stages
from cahqp.errors import ConfigError, RunError
from cahqp.runs import locks, process
from cahqp.runs.state import State

CYCLE = "cycle.json"
PROGRAM: tuple[str, ...] = (sys.executable, "-m", "cahqp")

_LOG_LINES = 15


@dataclass(frozen=True)
class Cycle:
    """A plan and the directory it is carried out in.

    Attributes:
        path: The plan's file, as it was given.
        plan: The plan, with the seed and the arms that hold here.
        root: The cycle's directory.
    """

    path: Path
    plan: Plan
    root: Path

    @property
    def stages(self) -> list[Stage]:
        """The stages in order."""
        return Stages(self.plan, self.root).all()

    @property
    def command(self) -> str:
        """The command that carries it out, or goes on with it."""
        given = ["cahqp", "cycle", "run", f"--plan={self.path}", f"--output={self.root}", f"--seed={self.plan.seed}"]
        return shlex.join(given)


def run(
    plan: Path,
    output: Path | None = None,
    seed: int | None = None,
    arms: str = "",
    dry_run: bool = False,
    watch: bool = False,
    rounds: int | None = None,
    replay: bool = True,
) -> None:
    """Carry out a plan: train or take the models, adapt, relabel, retrain, compare, publish, report.

    Killed or failed, the same command goes on from there. Finished stages whose inputs are unchanged are skipped; where
    inputs have changed, the old result is kept in `stale/` and made again.

    Args:
        plan: The YAML file; `configs/cycle/demo.yaml` is one to start from.
        output: Directory of the cycle. Default `runs/<name>`, with `-seed<N>` where --seed differs from the plan's.
        seed: Seed of every stage. Default the plan's.
        arms: Further teachers to compare with, separated by commas: mean-teacher, ca-hqp, oracle.
        dry_run: Print the commands and start nothing.
        watch: Of a plan with `watch`: wait for more frames, until interrupted.
        rounds: Of a plan with `watch`: end after so many rounds.
        replay: Of a plan with rounds: use its replay; `false` to see what is forgotten without.
    """
    if has_rounds(plan):
        _run_rounds(plan, output, seed, dry_run, watch, rounds, replay)
        return
    cycle = choose(plan, output, seed, arms)
    if dry_run:
        print(_commands(cycle.stages))
        return
    locks.acquire(cycle.root)
    try:
        _remember(cycle)
        run_stages(cycle.root, cycle.stages)
    finally:
        locks.release(cycle.root)
    print("\n".join(["", *summary.lines(cycle.root)]))


def _run_rounds(
    plan: Path, output: Path | None, seed: int | None, dry_run: bool, watch: bool, max_rounds: int | None, replay: bool
) -> None:
    from cahqp.cycle.rounds import run as rounds_run

    chosen = rounds_run.choose(plan, output, seed, replay)
    if dry_run:
        print(_commands(chosen.stages))
        return
    rounds_run.run_stages(chosen, watch, max_rounds)


def _commands(stages: Sequence[Stage]) -> str:
    """Return the stages' command lines; a URL stands in them without its password."""
    return "\n".join(shlex.join(["cahqp", *map(files.redact_url, stage.arguments)]) for stage in stages)


def choose(plan: Path, output: Path | None, seed: int | None, arms: str = "") -> Cycle:
    """Read a plan and find its directory. Arms that were added to the directory before stay.

    Raises:
        ConfigError: The plan or a flag cannot be right.
        RunError: The directory belongs to another name or seed.
    """
    asked = [arm.strip() for arm in arms.split(",") if arm.strip()]
    chosen = read_plan(plan, asked)
    if seed is not None and seed < 0:
        message = f"--seed must be 0 or more, got {seed}."
        raise ConfigError(message)
    wanted = chosen.seed if seed is None else seed
    root = output or Path("runs") / (chosen.name if wanted == chosen.seed else f"{chosen.name}-seed{wanted}")
    if (root / CYCLE).is_file():
        begun = files.read_json(root / CYCLE)
        _check_same(root, begun["name"], begun["seed"], chosen.name, wanted)
        chosen = read_plan(plan, [*begun["arms"], *asked])
    return Cycle(plan, replace(chosen, seed=wanted), root)


def _check_same(root: Path, name: str, seed: int, wanted_name: str, wanted_seed: int) -> None:
    if name != wanted_name:
        message = f"{root} was begun by the plan {name}, not {wanted_name}. Choose another --output, or remove it."
        raise RunError(message)
    if seed != wanted_seed:
        message = f"{root} was begun with seed {seed}, not {wanted_seed}. Give --seed {seed}, or another --output."
        raise RunError(message)


def _remember(cycle: Cycle) -> None:
    models = {name: path.as_posix() for name, path in Stages(cycle.plan, cycle.root).models.items()}
    files.write_json(
        cycle.root / CYCLE,
        {
            "name": cycle.plan.name,
            "seed": cycle.plan.seed,
            "arms": cycle.plan.arms,
            "models": models,
            "command": cycle.command,
        },
    )


def run_stages(root: Path, stages: Sequence[Stage]) -> None:
    """Carry out stages in their order, those that are done left out. The caller holds the lock of `root`.

    Args:
        root: Where state and logs are kept.
        stages: Each one's inputs are there, or are made by a stage before it.

    Raises:
        RunError: A stage failed, or what it reads is missing; those before it are kept.
    """
    state = State(root)
    for number, stage in enumerate(stages, 1):
        run_stage(stage, state, f"[{number}/{len(stages)}] {stage.name}")


def run_stage(stage: Stage, state: State, label: str) -> bool:
    """Carry out a stage, unless it is done.

    Args:
        stage: Its inputs are there.
        state: What is remembered of all stages.
        label: Begins its lines.

    Returns:
        Whether anything was done.

    Raises:
        RunError: An input is missing, or the stage failed.
    """
    key = state.key(stage)
    if key is None:
        missing = next(path for path in stage.inputs if not path.exists())
        message = f"Stage {stage.name} needs {missing}, which is not there. Give it back, or remove its directory."
        raise RunError(message)
    if state.is_done(stage, key):
        print(f"{label}: done before", flush=True)
        return False
    if state.is_stale(stage, key):
        print(f"{label}: its inputs have changed; what was there is now {state.set_aside(stage)}", flush=True)
    state.begin(stage, key)
    _carry_out_one(stage, state, label)
    return True


def _carry_out_one(stage: Stage, state: State, label: str) -> None:
    log = state.root / "logs" / f"{stage.name}.log"
    start = log.stat().st_size if log.exists() else 0
    began = time.monotonic()
    code = 0
    print(f"{label} ...", end="", flush=True)
    try:
        code = process.execute([*PROGRAM, *stage.arguments], log, lambda seconds, line: _show(label, seconds, line))
        finished = code == 0 and stage.output.is_dir()
    except BaseException:
        print(flush=True)
        state.end(stage, time.monotonic() - began, finished=False)
        raise
    seconds = time.monotonic() - began
    state.end(stage, seconds, finished)
    _clear_line(label)
    print(f" {'done' if finished else 'failed'} in {summary.duration(seconds)}", flush=True)
    if not finished:
        raise RunError(failure(stage, log, start, code))


def failure(stage: Stage, log: Path, start: int, code: int) -> str:
    """Say how a stage ended that failed, and what it last said.

    Args:
        stage: The stage.
        log: Its log.
        start: Byte of the log where this attempt began.
        code: Its exit code.
    """
    said = [f"    {line}" for line in process.last_lines(log, _LOG_LINES, start)]
    how = process.in_words(code) if code else f"exit code 0, but without {stage.output}"
    return "\n".join(
        [
            f"Stage {stage.name} ended with {how}. It last said:",
            *said,
            f"The whole log: {log}",
            "Mend what it names and run the same command again: it goes on from there.",
        ]
    )


def _show(label: str, seconds: float, line: str) -> None:
    if sys.stdout.isatty():
        text = f"{label} {summary.duration(seconds)}  {line}"
        print(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)


def _clear_line(label: str) -> None:
    if sys.stdout.isatty():
        print(f"\r\x1b[K{label} ...", end="")
