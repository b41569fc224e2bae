"""`cahqp cycle run`: run a plan stage by stage. A rerun resumes, and skips current results."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

from cahqp import files
from cahqp.cycle import summary
from cahqp.cycle.plan import CyclePlan, read_plan
from cahqp.cycle.rounds.plan import has_rounds
from cahqp.cycle.rounds.run import Rounds, open_rounds, run_rounds
from cahqp.cycle.stages import CYCLE, CycleStages
from cahqp.errors import ConfigError, RunError
from cahqp.runs import locks
from cahqp.runs.executor import run_stages
from cahqp.runs.state import Stage


@dataclass(frozen=True, kw_only=True)
class CycleRunOptions:
    """Run a plan: train or take the models, adapt, relabel, retrain, compare, publish, report.

    If interrupted, rerun the same command to resume. Finished stages whose inputs are unchanged are skipped. If inputs
    changed, the old result moves to `stale/` and the stage runs again.

    Attributes:
        plan: YAML file of the plan, such as `configs/cycle/demo.yaml`.
        output: Directory of the cycle. Default: `runs/<name>`, with `-seed<N>` if --seed differs from the plan's.
        seed: Seed of every stage. Default: the plan's.
        arms: Additional teachers for comparison, separated by spaces or commas: mean-teacher, ca-hqp, oracle.
        dry_run: Print the commands and start nothing.
        watch: With a plan that has `watch`: wait for more frames, until interrupted.
        rounds: With a plan that has `watch`: largest number of rounds. Default: no limit.
        replay: With a plan of rounds: use its replay buffer. `--replay=false` shows forgetting without it.
    """

    plan: Path
    output: Path | None = None
    seed: int | None = None
    arms: list[str] = field(default_factory=list)
    dry_run: bool = False
    watch: bool = False
    rounds: int | None = None
    replay: bool = True

    def __post_init__(self) -> None:
        """Check the seed.

        Raises:
            ConfigError: It is negative.
        """
        if self.seed is not None and self.seed < 0:
            message = f"--seed must be 0 or more, got {self.seed}."
            raise ConfigError(message)


@dataclass(frozen=True)
class Cycle:
    """A plan and its directory.

    Attributes:
        path: The plan's file, as given.
        plan: The plan, with the seed and the arms of this run.
        root: Directory of the cycle.
    """

    path: Path
    plan: CyclePlan
    root: Path

    @property
    def stages(self) -> list[Stage]:
        """The stages in order."""
        return CycleStages(self.plan, self.root).all()

    @property
    def command(self) -> str:
        """The command that starts or resumes the run."""
        words = ["cahqp", "cycle", "run", f"--plan={self.path}", f"--output={self.root}", f"--seed={self.plan.seed}"]
        return shlex.join(words)


def run(options: CycleRunOptions) -> None:
    """Run `cahqp cycle run`."""
    cycle: Cycle | Rounds
    if has_rounds(options.plan):
        cycle = open_rounds(options.plan, options.output, options.seed, options.replay)
    else:
        arms = [arm for text in options.arms for arm in text.split(",") if arm]
        cycle = open_cycle(options.plan, options.output, options.seed, arms)
    if options.dry_run:
        # A URL is printed without its password.
        print("\n".join(shlex.join(["cahqp", *map(files.redact_url, stage.arguments)]) for stage in cycle.stages))
    elif isinstance(cycle, Rounds):
        run_rounds(cycle, options.watch, options.rounds)
    else:
        _run_cycle(cycle)


def open_cycle(path: Path, output: Path | None, seed: int | None, arms: list[str] | None = None) -> Cycle:
    """Read a plan and find its directory. Arms of earlier runs in the directory are kept.

    Raises:
        ConfigError: The plan or an arm is invalid.
        RunError: The directory belongs to another name or seed.
    """
    plan = read_plan(path, arms or [])
    chosen = plan.seed if seed is None else seed
    root = output or Path("runs") / (plan.name if chosen == plan.seed else f"{plan.name}-seed{chosen}")
    if (root / CYCLE).is_file():
        begun = files.read_json(root / CYCLE)
        if begun["name"] != plan.name:
            message = f"{root} was begun by the plan {begun['name']}, not {plan.name}. Choose another --output."
            raise RunError(message)
        if begun["seed"] != chosen:
            message = f"{root} was begun with seed {begun['seed']}, not {chosen}. Give that seed, or another --output."
            raise RunError(message)
        plan = read_plan(path, [*begun["arms"], *(arms or [])])
    return Cycle(path, replace(plan, seed=chosen), root)


def _run_cycle(cycle: Cycle) -> None:
    locks.acquire(cycle.root)
    try:
        models = CycleStages(cycle.plan, cycle.root).models
        entries = {
            "name": cycle.plan.name,
            "seed": cycle.plan.seed,
            "arms": cycle.plan.arms,
            "models": {name: path.as_posix() for name, path in models.items()},
            "command": cycle.command,
        }
        files.write_json(cycle.root / CYCLE, entries)
        run_stages(cycle.root, cycle.stages)
    finally:
        locks.release(cycle.root)
    print("\n".join(["", *summary.lines(cycle.root)]))
