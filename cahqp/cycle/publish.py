"""Publish the retrained student, or keep the old one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from cahqp import files
from cahqp.errors import RunError
from cahqp.runs.directory import RunDirectory

CANDIDATE = "student-new"
RUNNING = "student-old"


def publish(candidate: Path, running: Path, metrics: Path, output: Path, frames: str = "target-test") -> None:
    """Publish the better of two students: the retrained one, unless it is worse on the same frames.

    Writes `model.safetensors`, `decision.json` with the reason, and `manifest.json`.

    Args:
        candidate: Model file of the retrained student.
        running: Model file of the student that runs now.
        metrics: What `cahqp evaluate` wrote; holds `student-new` and `student-old`.
        output: Directory to make.
        frames: Name of the frames whose AP50 decides; the mean of `NAME`, `NAME-2`, ... where there are several files.
    """
    figures = files.read_json(metrics)
    decision = decide(_ap50(figures, CANDIDATE, frames, metrics), _ap50(figures, RUNNING, frames, metrics), frames)
    inputs = {"candidate": candidate, "running": running}
    directory = RunDirectory(output, "publish", decision, inputs, seed=0)
    if directory.begin():
        with (
            (candidate if decision["published"] else running).open("rb") as chosen,
            files.atomic_write(directory.work / "model.safetensors", "wb") as copy,
        ):
            shutil.copyfileobj(chosen, copy)
        files.write_json(directory.work / "decision.json", decision)
        directory.finish({key: decision[key] for key in ("candidate_ap50", "running_ap50")})
    print(decision["reason"])


def decide(candidate: float | None, running: float | None, frames: str) -> dict[str, Any]:
    """Weigh two AP50 in 0..1.

    Returns:
        `published` (whether the candidate goes out), `reason`, and the figures.
    """
    if candidate is None or running is None:
        better, reason = False, f"Kept the running student: AP50 on {frames} is not known for both."
    else:
        better = candidate >= running
        figures = f"AP50 on {frames} is {100 * candidate:.1f}, the running one's {100 * running:.1f}"
        verdict = "Published the retrained student" if better else "Kept the running student"
        reason = f"{verdict}: the retrained one's {figures}."
    return {
        "published": better,
        "reason": reason,
        "frames": frames,
        "candidate_ap50": candidate,
        "running_ap50": running,
    }


def _ap50(figures: Any, model: str, frames: str, path: Path) -> float | None:
    try:
        measured = figures["models"][model]
        first = measured[frames]
        others = [measured[name] for name in measured if re.fullmatch(rf"{re.escape(frames)}-\d+", name)]
        values = [value["ap50"] for value in (first, *others)]
    except (KeyError, TypeError) as error:
        message = f"{path} has no AP50 of {model} on {frames}. Run `cahqp evaluate` with both."
        raise RunError(message) from error
    return None if None in values else float(sum(values) / len(values))
