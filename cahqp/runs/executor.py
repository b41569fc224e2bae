"""Stage executor: each stage is one process of cahqp, and stages whose results are current are skipped."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from cahqp.errors import RunError
from cahqp.runs import process
from cahqp.runs.remaining import Remaining
from cahqp.runs.stage_process import SHARED
from cahqp.runs.state import Stage, State

_OWN = (sys.executable, "-m", "cahqp")
PROGRAM: tuple[str, ...] = _OWN

_LOG_LINES = 15
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def run_stages(
    root: Path,
    stages: Sequence[Stage],
    jobs: int = 1,
    costs: Mapping[str, float] | None = None,
    after: Callable[[Stage], None] | None = None,
) -> None:
    """Run stages that are not current. The caller holds the lock of `root`.

    Args:
        root: Directory of the state file and the logs.
        stages: Each stage's inputs exist or are outputs of earlier stages.
        jobs: Number of stages that run at the same time. Above 1, each process uses one thread.
        costs: Expected seconds by stage, for the remaining time that is printed. Not used with `jobs`.
        after: Called with each stage that has run. Not used with `jobs`.

    Raises:
        RunError: An input is missing or a stage failed. Finished stages are kept; with `jobs`, running ones finish.
    """
    state = State(root)
    if jobs > 1:
        _run_parallel(state, stages, jobs)
        return
    remaining = Remaining(costs or {})
    for number, stage in enumerate(stages, 1):
        if run_stage(stage, state, f"[{number}/{len(stages)}] {stage.name}", remaining) and after is not None:
            after(stage)


def run_stage(stage: Stage, state: State, label: str, remaining: Remaining | None = None) -> bool:
    """Run one stage unless it is current.

    Args:
        stage: A stage whose inputs exist.
        state: State of the directory that the stage belongs to.
        label: Prefix of the printed lines.
        remaining: Estimate to print and to update.

    Returns:
        True if the stage ran, False if it was current.

    Raises:
        RunError: An input is missing or the stage failed.
    """
    remaining = remaining or Remaining({})
    if not _begin(stage, state, label):
        remaining.end(stage.name)
        print(f"{label}: done before", flush=True)
        return False
    print(f"{label} ...", end="", flush=True)
    began, outcome, failure = time.monotonic(), "interrupted", ""
    try:
        _, failure = _execute(stage, state.root, label, remaining)
        outcome = "failed" if failure else "done"
    finally:
        seconds = time.monotonic() - began
        state.end(stage, seconds, outcome == "done")
        if sys.stdout.isatty():
            print(f"\r\x1b[K{label} ...", end="")
        remaining.end(stage.name, seconds)
        print(f" {outcome} in {duration(seconds)}{_left(remaining) if outcome == 'done' else ''}", flush=True)
    if failure:
        raise RunError(failure)
    return True


def _left(remaining: Remaining, running: str = "", elapsed: float = 0.0) -> str:
    seconds = remaining.seconds(running, elapsed)
    return "" if seconds is None else f", about {duration(max(1, round(seconds / 5) * 5))} left"


def duration(seconds: float) -> str:
    """Return a duration as text, such as `1 h 02 min`, `3 min 20 s` or `4.2 s`; whole numbers have no decimals."""
    if seconds < 60:
        return f"{seconds} s" if isinstance(seconds, int) else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _run_parallel(state: State, stages: Sequence[Stage], jobs: int) -> None:
    # Small models leave a second core idle, whatever one process does with its threads.
    os.environ |= dict.fromkeys(_THREADS, "1")
    waiting = list(stages)
    failures: list[str] = []
    running: dict[Future[tuple[float, str]], Stage] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while running or (waiting and not failures):
            while not failures and len(running) < jobs and (ready := _ready(waiting, running.values())):
                waiting.remove(ready[0])
                if _begin(ready[0], state, ready[0].name):
                    running[pool.submit(_execute, ready[0], state.root)] = ready[0]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage = running.pop(future)
                seconds, failure = future.result()
                state.end(stage, seconds, not failure)
                failures += [failure] if failure else []
                outcome = f"{'failed' if failure else 'done'} in {duration(seconds)}"
                print(f"{stage.name} {outcome}, {len(waiting) + len(running)} left", flush=True)
    if failures:
        raise RunError(failures[0])


def _ready(waiting: Sequence[Stage], running: Iterable[Stage]) -> list[Stage]:
    """Return the stages whose inputs are not outputs of unfinished stages."""
    missing = {stage.output for stage in (*waiting, *running)}
    return [stage for stage in waiting if not missing & {folder for path in stage.inputs for folder in path.parents}]


def _begin(stage: Stage, state: State, label: str) -> bool:
    """Return whether a stage has to run, and if so record its start."""
    key = state.key(stage)
    if key is None:
        missing = next(path for path in stage.inputs if not path.exists())
        message = f"Stage {stage.name} needs {missing}, which is missing. Restore it, or remove its directory."
        raise RunError(message)
    if state.is_done(stage, key):
        return False
    if state.is_stale(stage, key):
        print(f"{label}: inputs changed; the previous result is now {state.set_aside(stage)}", flush=True)
    state.begin(stage, key)
    return True


def _execute(
    stage: Stage, root: Path, label: str = "", remaining: Remaining | None = None
) -> tuple[float, str]:  # fmt: skip
    """Run a stage's process; with `label`, show its progress on a terminal.

    Returns:
        The seconds it took and the message of a failure, empty on success.
    """
    log = root / "logs" / f"{stage.name}.log"
    start = log.stat().st_size if log.exists() else 0
    began = time.monotonic()

    def show(seconds: float, line: str) -> None:
        _show(label, duration(seconds) + _left(remaining or Remaining({}), stage.name, seconds), line)

    if label and PROGRAM == _OWN and sys.platform == "linux":
        code = SHARED.execute(stage.arguments, log, show)
    else:
        code = process.execute([*PROGRAM, *stage.arguments], log, show)
    seconds = time.monotonic() - began
    if code == 0 and stage.output.is_dir():
        return seconds, ""
    ending = process.in_words(code) if code else f"exit code 0, but without {stage.output}"
    lines = [
        f"Stage {stage.name} ended with {ending}. Last lines of its log:",
        *(f"    {line}" for line in process.last_lines(log, _LOG_LINES, start)),
        f"Complete log: {log}",
        "Fix the cause and rerun the same command to resume.",
    ]
    return seconds, "\n".join(lines)


def _show(label: str, times: str, line: str) -> None:
    if label and sys.stdout.isatty():
        text = f"{label} {times}  {line}"
        print(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
