"""Runner of a plan of rounds. It resumes anywhere, and can wait for a watched folder to make more rounds."""

from __future__ import annotations

import time
from pathlib import Path

from cahqp.cycle import summary
from cahqp.cycle.fetch.command import list_new
from cahqp.cycle.opening import Cycle
from cahqp.cycle.rounds.incoming import add_round, drop_unstarted, incoming
from cahqp.cycle.rounds.plan import RoundsPlan, WatchedFolder
from cahqp.cycle.stages import CYCLE
from cahqp.errors import ConfigError, DataError, RunError
from cahqp.files import write_json
from cahqp.runs import executor, locks, process
from cahqp.runs.state import State


def run_rounds(cycle: Cycle, plan: RoundsPlan, watch: bool = False, max_rounds: int | None = None) -> None:
    """Run all rounds that exist. With `watch`, wait for a folder to make more, until interrupted.

    Args:
        cycle: The plan's file and directory.
        plan: The plan.
        watch: Wait for more rounds.
        max_rounds: Largest number of rounds. Default: no limit.

    Raises:
        RunError: A stage failed. Rerun the same command to resume.
    """
    folder, root = plan.watch, cycle.root
    if watch and folder is None:
        message = f"--watch needs a section `watch` in {cycle.path}, with the folder and the size of a round."
        raise ConfigError(message)
    with locks.hold(root):
        entries = {"name": plan.name, "seed": plan.seed, "replay": cycle.replay, "rounds": True}
        write_json(root / CYCLE, {**entries, "command": cycle.command})
        if folder is not None:
            drop_unstarted(root, _fetches(root))
        _run_known(cycle)
        while folder is not None and (max_rounds is None or len(_fetches(root)) < max_rounds):
            if _start_round(root, folder, patient=watch):
                _run_known(cycle)
            elif watch:
                time.sleep(folder.seconds)
            else:
                break
    print("\n".join(["", *summary.round_lines(root)]))


def _fetches(root: Path) -> list[Path]:
    """Return the directories of the fetches of a watched folder's rounds."""
    return [root / f"round-{number:02d}" / "fetch" for number in range(1, len(incoming(root)) + 1)]


def _run_known(cycle: Cycle) -> None:
    """Run the stages. After each one, list them again, because they may depend on its result."""
    state = State(cycle.root)
    number, reported = 0, False
    while number < len(stages := cycle.stages):
        stage = stages[number]
        number += 1
        ran = executor.run_stage(stage, state, f"[{number}/{len(stages)}] {stage.name}")
        reported = reported and not ran
        if ran and stage.name.endswith("/published"):
            _report(cycle.root)
            reported = True
    if not reported:  # a round without drift publishes nothing, or an interruption came before the report
        _report(cycle.root)


def _report(root: Path) -> None:
    """Rewrite the report. It is not a stage, because its inputs keep growing."""
    log = root / "logs" / "report.log"
    code = process.execute([*executor.PROGRAM, "report", f"--run={root}"], log, lambda seconds, line: None)
    if code:
        last = "".join(process.last_lines(log, 1))
        message = f"The report ended with {process.in_words(code)}: {last}\nComplete log: {log}"
        raise RunError(message)


def _start_round(root: Path, folder: WatchedFolder, patient: bool) -> bool:
    """Add a round if enough complete files are in the folder; if `patient`, print errors of a store and wait."""
    until = time.time() - folder.settle
    try:
        new, _ = list_new(folder.frames, _fetches(root), until)
    except DataError as error:
        if not patient:
            raise
        print(f"{error} Next check in {folder.seconds:g} s.", flush=True)
        return False
    if len(new) < folder.min_frames:
        return False
    add_round(root, until)
    return True
