"""Plans and their directories, for `cahqp cycle run` and `status`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cahqp.cycle.plan import CyclePlan, read_plan
from cahqp.cycle.rounds.plan import RoundsPlan, has_rounds, read_rounds
from cahqp.cycle.rounds.stages import RoundStages
from cahqp.cycle.stages import CycleStages, read_begun
from cahqp.errors import RunError
from cahqp.runs.state import Stage


@dataclass(frozen=True)
class Cycle:
    """A plan and its directory.

    Attributes:
        path: The plan's file, as given.
        plan: The plan, with the seed and the arms of this run.
        root: Directory of the cycle.
        replay: Whether a plan of rounds uses its replay buffer.
    """

    path: Path
    plan: CyclePlan | RoundsPlan
    root: Path
    replay: bool = True

    @property
    def stages(self) -> list[Stage]:
        """The stages that are determined so far, in order."""
        plan = self.plan
        return (RoundStages(plan, self.root) if isinstance(plan, RoundsPlan) else CycleStages(plan, self.root)).made

    @property
    def command(self) -> str:
        """The command that starts or resumes the run."""
        words = ["cahqp", "cycle", "run", f"--plan={self.path}", f"--output={self.root}", f"--seed={self.plan.seed}"]
        return shlex.join([*words, *([] if self.replay else ["--no-replay"])])


def open_cycle(
    path: Path, output: Path | None, seed: int | None, arms: Sequence[str] = (), replay: bool = True
) -> Cycle:  # fmt: skip
    """Read a plan and find its directory. Arms of earlier runs in the directory are kept.

    Raises:
        ConfigError: The plan or an arm is invalid.
        RunError: The directory belongs to another name, seed or use of replay.
    """
    plan = read_rounds(path) if has_rounds(path) else read_plan(path, arms)
    chosen = plan.seed if seed is None else seed
    comparison = isinstance(plan, RoundsPlan) and not replay
    name = plan.name + ("-without-replay" if comparison else "") + ("" if chosen == plan.seed else f"-seed{chosen}")
    root = output or Path("runs") / name
    begun = read_begun(root)
    recorded = begun.model_dump(include=begun.model_fields_set)
    expected = {"name": plan.name, "seed": chosen, "replay": replay}
    if different := [key for key, value in expected.items() if recorded.get(key, value) != value]:
        changes = ", ".join(f"{key} {recorded[key]}, not {expected[key]}" for key in different)
        message = f"{root} was begun with {changes}. Give the same values, or another --output."
        raise RunError(message)
    if isinstance(plan, CyclePlan):
        plan = read_plan(path, [*begun.arms, *arms])
        return Cycle(path, replace(plan, seed=chosen), root)
    gate = plan.gate
    if gate is not None and (comparison or chosen != plan.seed):
        gate = replace(gate, registry=None)  # a run for comparison must not publish to the cameras
    return Cycle(path, replace(plan, seed=chosen, replay=plan.replay if replay else None, gate=gate), root, replay)
