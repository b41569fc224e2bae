"""`cahqp cycle run`: run a plan stage by stage. A rerun resumes, and skips current results."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from cahqp.cycle import summary
from cahqp.cycle.checks import check_plan
from cahqp.cycle.estimate import stage_costs
from cahqp.cycle.opening import open_cycle
from cahqp.cycle.rounds.plan import RoundsPlan
from cahqp.cycle.rounds.run import run_rounds
from cahqp.cycle.stages import CYCLE, FIRST_LABELS, CycleStages
from cahqp.errors import CahqpError, ConfigError
from cahqp.files import redact_url, write_json
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
        dry_run: Check weights, classes and sizes, print the commands, and start nothing.
        watch: With a plan that has `watch`: wait for more frames, until interrupted.
        rounds: With a plan that has `watch`: largest number of rounds. Default: no limit.
        replay: With a plan of rounds: use its replay buffer. `--no-replay` shows forgetting without it.
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
        if self.seed is not None and self.seed < 0:
            message = f"--seed must be 0 or more, got {self.seed}."
            raise ConfigError(message)


def run(options: CycleRunOptions) -> Path:
    """Run `cahqp cycle run`, and return the directory of the cycle.

    Raises:
        CahqpError: The plan is invalid, or a stage failed.
    """
    arms = [arm for text in options.arms for arm in text.split(",") if arm]
    cycle = open_cycle(options.plan, options.output, options.seed, arms, options.replay)
    if options.dry_run:
        check_plan(options.plan, cycle.plan)
        # A URL is printed without its password.
        print("\n".join(shlex.join(["cahqp", *map(redact_url, stage.arguments)]) for stage in cycle.stages))
    elif isinstance(cycle.plan, RoundsPlan):
        run_rounds(cycle, cycle.plan, options.watch, options.rounds)
    else:
        models = CycleStages(cycle.plan, cycle.root).models
        entries = {
            "name": cycle.plan.name,
            "seed": cycle.plan.seed,
            "arms": cycle.plan.arms,
            "models": {name: path.as_posix() for name, path in models.items()},
            "command": cycle.command,
        }
        with locks.hold(cycle.root):
            write_json(cycle.root / CYCLE, entries)
            run_stages(cycle.root, cycle.stages, costs=stage_costs(cycle.stages), after=_show_first_labels)
        print("\n".join(["", *summary.lines(cycle.root)]))
    return cycle.root


def _show_first_labels(stage: Stage) -> None:
    """Draw the labels of the source teacher, the first result that can be looked at."""
    if stage.name != FIRST_LABELS:
        return
    from cahqp.reports.first_labels import write_first_labels

    path = stage.output.with_name("first-labels.png")
    try:
        number = write_first_labels(stage.output, path)
    except CahqpError as error:
        print(f"No picture of the first labels: {error}", flush=True)
        return
    print(f"Labels before adaptation on {number} frames: {path}", flush=True)
