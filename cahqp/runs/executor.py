"""Several stages at a time: small models leave a second core idle, whatever one process does with its threads."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from cahqp.cycle import run
from cahqp.runs import process
from cahqp.cycle import summary
from cahqp.cycle.stages import Stage
from cahqp.runs.state import State
from cahqp.errors import RunError

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
Ended = tuple[int, float]  # exit code, seconds


def carry_out_together(root: Path, stages: Sequence[Stage], jobs: int) -> None:
    """Carry out stages as soon as what they read is made, each process with one thread.

    Args:
        root: Where state and logs are kept. The caller holds its lock.
        stages: Each one's inputs are there, or are made by a stage before it.
        jobs: How many at a time.

    Raises:
        RunError: A stage failed. Those that ran beside it are finished first, and no further one is started.
    """
    os.environ |= dict.fromkeys(_THREADS, "1")
    state, waiting, failed = State(root), list(stages), ""
    running: dict[Future[Ended], tuple[Stage, Path, int]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while running or (waiting and not failed):
            while not failed and len(running) < jobs:
                ready = _ready(waiting, [stage for stage, _, _ in running.values()])
                if not ready:
                    break
                stage = ready[0]
                waiting.remove(stage)
                if _begin(state, stage):
                    log = root / "logs" / f"{stage.name}.log"
                    start = log.stat().st_size if log.exists() else 0
                    running[pool.submit(_execute, stage, log)] = (stage, log, start)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage, log, start = running.pop(future)
                code, seconds = future.result()
                finished = code == 0 and stage.output.is_dir()
                state.end(stage, seconds, finished)
                left = f"{len(waiting) + len(running)} left"
                print(
                    f"{stage.name} {'done' if finished else 'failed'} in {summary.duration(seconds)}, {left}", flush=True
                )
                failed = failed or ("" if finished else run.failure(stage, log, start, code))
    if failed:
        raise RunError(failed)


def _ready(waiting: Sequence[Stage], running: Iterable[Stage]) -> list[Stage]:
    """Return the stages that read nothing that is still to be made."""
    missing = {stage.output for stage in (*waiting, *running)}
    return [stage for stage in waiting if not missing & {folder for path in stage.inputs for folder in path.parents}]


def _begin(state: State, stage: Stage) -> bool:
    """Say whether a stage has to be carried out, and if so remember that it has begun."""
    key = state.key(stage)
    if key is None:
        missing = next(path for path in stage.inputs if not path.exists())
        message = f"Stage {stage.name} needs {missing}, which is not there. Give it back, or remove its directory."
        raise RunError(message)
    if state.is_done(stage, key):
        return False
    if state.is_stale(stage, key):
        print(f"{stage.name}: its inputs have changed; what was there is now {state.set_aside(stage)}", flush=True)
    state.begin(stage, key)
    return True


def _execute(stage: Stage, log: Path) -> Ended:
    began = time.monotonic()
    code = process.execute([*run.PROGRAM, *stage.arguments], log, lambda seconds, line: None)
    return code, time.monotonic() - began
