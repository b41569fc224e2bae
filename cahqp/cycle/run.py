"""Carry out a plan, stage by stage, from wherever it stands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cahqp import files
from cahqp.cycle import summary
from cahqp.cycle.plan import Plan, read_plan
from cahqp.cycle.rounds import run as rounds_run
from cahqp.cycle.rounds.plan import has_rounds
from cahqp.cycle.stages import CYCLE, Stages
from cahqp.errors import ConfigError, RunError
from cahqp.runs import locks
from cahqp.runs.executor import run_stages
from cahqp.runs.state import Stage


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
