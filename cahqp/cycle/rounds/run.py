"""Carry out a plan of rounds from wherever it stands, and wait for more where a folder is watched."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path

from cahqp import files
from cahqp.cycle import summary
from cahqp.cycle.fetch import new
from cahqp.cycle.rounds.incoming import add_arrival, drop_unbegun
from cahqp.cycle.rounds.plan import RoundsPlan, Watch, read_rounds
from cahqp.cycle.rounds.stages import RoundStages
from cahqp.cycle.stages import CYCLE
from cahqp.errors import ConfigError, DataError, RunError
from cahqp.runs import executor, locks, process
from cahqp.runs.state import Stage, State


@dataclass(frozen=True)
class Rounds:
    """A plan of rounds and the directory it is carried out in.

    Attributes:
        path: The plan's file, as it was given.
        plan: The plan, with the seed that holds here.
        root: The cycle's directory.
        replay: Whether the plan's replay is used.
    """

    path: Path
    plan: RoundsPlan
    root: Path
    replay: bool = True

    @property
    def stages(self) -> list[Stage]:
        """The stages that are known by now, in order."""
        return RoundStages(self.plan, self.root).all()

    @property
    def command(self) -> str:
        """The command that carries it out, or goes on with it."""
        given = ["cahqp", "cycle", "run", f"--plan={self.path}", f"--output={self.root}", f"--seed={self.plan.seed}"]
        return shlex.join([*given, *([] if self.replay else ["--replay=false"])])


def choose(path: Path, output: Path | None, seed: int | None, replay: bool = True) -> Rounds:
    """Read a plan of rounds and find its directory.

    Raises:
        ConfigError: The plan or a flag cannot be right.
        RunError: The directory belongs to another name, seed or kind of replay.
    """
    plan = read_rounds(path)
    if seed is not None and seed < 0:
        message = f"--seed must be 0 or more, got {seed}."
        raise ConfigError(message)
    wanted = plan.seed if seed is None else seed
    name = plan.name + ("" if replay else "-without-replay") + ("" if wanted == plan.seed else f"-seed{wanted}")
    root = output or Path("runs") / name
    chosen = replace(plan, seed=wanted, replay=plan.replay if replay else None)
    if chosen.gate is not None and not (replay and wanted == plan.seed):
        # What is run for comparison must not go out to the cameras.
        chosen = replace(chosen, gate=replace(chosen.gate, registry=None))
    if (root / CYCLE).is_file():
        begun = files.read_json(root / CYCLE)
        same = {"name": plan.name, "seed": wanted, "replay": replay}
        if other := [key for key, value in same.items() if begun.get(key) != value]:
            told = ", ".join(f"{key} {begun.get(key)}, not {same[key]}" for key in other)
            message = f"{root} was begun with {told}. Give what it was begun with, or another --output."
            raise RunError(message)
    return Rounds(path, chosen, root, replay)


def run_stages(rounds: Rounds, watch: bool = False, max_rounds: int | None = None) -> None:
    """Carry out all rounds that are known, then, if asked to, wait for a folder to make more.

    Args:
        rounds: The plan and its directory.
        watch: Wait for more, until interrupted.
        max_rounds: Rounds after which it ends. Default none.

    Raises:
        RunError: A stage failed; the same command goes on from there.
    """
    if watch and rounds.plan.watch is None:
        message = (
            f"--watch needs a section `watch` in {rounds.path}: the folder that fills, and how much makes a round."
        )
        raise ConfigError(message)
    locks.acquire(rounds.root)
    try:
        _remember(rounds)
        if rounds.plan.watch is not None:
            drop_unbegun(rounds.root, rounds.root / f"round-{_count(rounds):02d}" / "fetch", files.write_json)
        _known(rounds)
        while rounds.plan.watch is not None and (max_rounds is None or _count(rounds) < max_rounds):
            if _arrived(rounds, rounds.plan.watch, patient=watch):
                _known(rounds)
            elif watch:
                time.sleep(rounds.plan.watch.seconds)
            else:
                break
    finally:
        locks.release(rounds.root)
    print("\n".join(["", *summary.round_lines(rounds.root)]))


def _count(rounds: Rounds) -> int:
    return len(RoundStages(rounds.plan, rounds.root).rounds)


def _remember(rounds: Rounds) -> None:
    said = {"name": rounds.plan.name, "seed": rounds.plan.seed, "replay": rounds.replay, "command": rounds.command}
    files.write_json(rounds.root / CYCLE, {**said, "rounds": True})


def _known(rounds: Rounds) -> None:
    """Carry out the stages; what comes after one is asked anew, because it may depend on what that one found."""
    state = State(rounds.root)
    number, told = 0, False
    while number < len(stages := rounds.stages):
        stage = stages[number]
        number += 1
        fresh = executor.run_stage(stage, state, f"[{number}/{len(stages)}] {stage.name}")
        told = told and not fresh
        if fresh and stage.name.endswith("/published"):
            _report(rounds)
            told = True
    if not told:  # a round without drift publishes nothing, and a kill may have come between
        _report(rounds)


def _report(rounds: Rounds) -> None:
    """Write the report anew. It is no stage: it tells of a cycle that goes on."""
    log = rounds.root / "logs" / "report.log"
    code = process.execute([*executor.PROGRAM, "report", f"--run={rounds.root}"], log, lambda seconds, line: None)
    if code:
        said = "".join(process.last_lines(log, 1))
        message = f"The report ended with {process.in_words(code)}: {said}\nThe whole log: {log}"
        raise RunError(message)


def _arrived(rounds: Rounds, watch: Watch, patient: bool) -> bool:
    """Begin a round if enough has arrived and been left alone; `patient` tells of a store that fails, and waits."""
    stages = RoundStages(rounds.plan, rounds.root)
    fetched = [rounds.root / f"round-{number:02d}" / "fetch" for number in range(1, len(stages.rounds) + 1)]
    until = time.time() - watch.settle
    try:
        incoming = new(watch.frames, fetched, until)
    except DataError as error:
        if not patient:
            raise
        print(f"{error} Looking again in {watch.seconds:g} s.", flush=True)
        return False
    if len(incoming) < watch.min_frames:
        return False
    add_arrival(rounds.root, until, files.write_json)
    return True
