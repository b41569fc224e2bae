"""Runner of a plan of rounds. It resumes anywhere, and can wait for a watched folder to make more rounds."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path

from cahqp import files
from cahqp.cycle import summary
from cahqp.cycle.fetch import list_new
from cahqp.cycle.rounds.incoming import add_round, drop_unstarted
from cahqp.cycle.rounds.plan import RoundsPlan, WatchedFolder, read_rounds
from cahqp.cycle.rounds.stages import RoundStages
from cahqp.cycle.stages import CYCLE
from cahqp.errors import ConfigError, DataError, RunError
from cahqp.runs import executor, locks, process
from cahqp.runs.state import Stage, State


@dataclass(frozen=True)
class Rounds:
    """A plan of rounds and its directory.

    Attributes:
        path: The plan's file, as given.
        plan: The plan, with the seed of this run.
        root: Directory of the cycle.
        replay: Whether the plan's replay buffer is used.
    """

    path: Path
    plan: RoundsPlan
    root: Path
    replay: bool = True

    @property
    def stages(self) -> list[Stage]:
        """The stages that are determined so far, in order."""
        return RoundStages(self.plan, self.root).all()

    @property
    def fetches(self) -> list[Path]:
        """Directories of the fetches of a watched folder's rounds."""
        count = len(RoundStages(self.plan, self.root).rounds)
        return [self.root / f"round-{number:02d}" / "fetch" for number in range(1, count + 1)]

    @property
    def command(self) -> str:
        """The command that starts or resumes the run."""
        words = ["cahqp", "cycle", "run", f"--plan={self.path}", f"--output={self.root}", f"--seed={self.plan.seed}"]
        return shlex.join([*words, *([] if self.replay else ["--replay=false"])])


def open_rounds(path: Path, output: Path | None, seed: int | None, replay: bool = True) -> Rounds:
    """Read a plan of rounds and find its directory.

    Raises:
        ConfigError: The plan is invalid.
        RunError: The directory belongs to another name, seed or use of replay.
    """
    plan = read_rounds(path)
    chosen = plan.seed if seed is None else seed
    name = plan.name + ("" if replay else "-without-replay") + ("" if chosen == plan.seed else f"-seed{chosen}")
    root = output or Path("runs") / name
    gate = plan.gate
    if gate is not None and not (replay and chosen == plan.seed):
        gate = replace(gate, registry=None)  # a run for comparison must not publish to the cameras
    if (root / CYCLE).is_file():
        begun = files.read_json(root / CYCLE)
        expected = {"name": plan.name, "seed": chosen, "replay": replay}
        if different := [key for key, value in expected.items() if begun.get(key) != value]:
            changes = ", ".join(f"{key} {begun.get(key)}, not {expected[key]}" for key in different)
            message = f"{root} was begun with {changes}. Give the same values, or another --output."
            raise RunError(message)
    plan = replace(plan, seed=chosen, replay=plan.replay if replay else None, gate=gate)
    return Rounds(path, plan, root, replay)


def run_rounds(rounds: Rounds, watch: bool = False, max_rounds: int | None = None) -> None:
    """Run all rounds that exist. With `watch`, wait for a folder to make more, until interrupted.

    Args:
        rounds: The plan and its directory.
        watch: Wait for more rounds.
        max_rounds: Largest number of rounds. Default: no limit.

    Raises:
        RunError: A stage failed. Rerun the same command to resume.
    """
    folder = rounds.plan.watch
    if watch and folder is None:
        message = f"--watch needs a section `watch` in {rounds.path}, with the folder and the size of a round."
        raise ConfigError(message)
    locks.acquire(rounds.root)
    try:
        entries = {"name": rounds.plan.name, "seed": rounds.plan.seed, "replay": rounds.replay, "rounds": True}
        files.write_json(rounds.root / CYCLE, {**entries, "command": rounds.command})
        if folder is not None and rounds.fetches:
            drop_unstarted(rounds.root, rounds.fetches[-1])
        _run_known(rounds)
        while folder is not None and (max_rounds is None or len(rounds.fetches) < max_rounds):
            if _start_round(rounds, folder, patient=watch):
                _run_known(rounds)
            elif watch:
                time.sleep(folder.seconds)
            else:
                break
    finally:
        locks.release(rounds.root)
    print("\n".join(["", *summary.round_lines(rounds.root)]))


def _run_known(rounds: Rounds) -> None:
    """Run the stages. After each one, list them again, because they may depend on its result."""
    state = State(rounds.root)
    number, reported = 0, False
    while number < len(stages := rounds.stages):
        stage = stages[number]
        number += 1
        ran = executor.run_stage(stage, state, f"[{number}/{len(stages)}] {stage.name}")
        reported = reported and not ran
        if ran and stage.name.endswith("/published"):
            _report(rounds)
            reported = True
    if not reported:  # a round without drift publishes nothing, or an interruption came before the report
        _report(rounds)


def _report(rounds: Rounds) -> None:
    """Rewrite the report. It is not a stage, because its inputs keep growing."""
    log = rounds.root / "logs" / "report.log"
    command = [*executor.PROGRAM, "report", f"--run={rounds.root}"]
    code = process.execute(command, log, lambda seconds, line: None)
    if code:
        last = "".join(process.last_lines(log, 1))
        message = f"The report ended with {process.in_words(code)}: {last}\nComplete log: {log}"
        raise RunError(message)


def _start_round(rounds: Rounds, folder: WatchedFolder, patient: bool) -> bool:
    """Add a round if enough complete files are in the folder; if `patient`, print errors of a store and wait."""
    until = time.time() - folder.settle
    try:
        new = list_new(folder.frames, rounds.fetches, until)
    except DataError as error:
        if not patient:
            raise
        print(f"{error} Next check in {folder.seconds:g} s.", flush=True)
        return False
    if len(new) < folder.min_frames:
        return False
    add_round(rounds.root, until)
    return True
