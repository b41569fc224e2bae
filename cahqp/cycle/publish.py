"""`cahqp publish`: publish the retrained student, or keep the running one, by their AP50."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cahqp import files
from cahqp.errors import RunError
from cahqp.runs.directory import open_run
from cahqp.runs.evidence import Metrics, analysis_mark, check_measured, read_metrics

CANDIDATE = "student-new"
RUNNING = "student-old"


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """Publish the retrained student, unless its AP50 is below that of the running student.

    Writes `model.safetensors`, `decision.json` with the reason, and `manifest.json`.

    Attributes:
        candidate: Model file of the retrained student.
        running: Model file of the running student.
        metrics: Metrics file that `cahqp evaluate` wrote for `student-new` and `student-old`.
        output: New directory for the published model.
        frames: Name of the frames whose AP50 decides. Files `NAME`, `NAME-2`, ... count by their mean.
        labelled: COCO files of these frames, in this order. They must be the measured ones. Default: not compared.
    """

    candidate: Path
    running: Path
    metrics: Path
    output: Path
    frames: str = "target-test"
    labelled: list[Path] = field(default_factory=list)


def publish(options: PublishOptions) -> None:
    """Run `cahqp publish`.

    Raises:
        RunError: The metrics are of other models or frames, or the candidate is for analysis only.
    """
    if analysis_mark([options.candidate]):
        message = f"{options.candidate} was trained on repaired target labels, for analysis only. Give another model."
        raise RunError(message)
    metrics = read_metrics(options.metrics)
    candidate, running = (_ap50(metrics, model, options) for model in (CANDIDATE, RUNNING))
    _check_subject(metrics, options)
    decision = decide_publication(candidate, running, options.frames)
    inputs = {"candidate": options.candidate, "running": options.running}
    with open_run(options.output, "publish", decision, inputs) as run:
        if run is not None:
            copy_whole(options.candidate if decision["published"] else options.running, run.work / "model.safetensors")
            files.write_json(run.work / "decision.json", decision)
            run.metrics = {key: decision[key] for key in ("candidate_ap50", "running_ap50")}
    print(decision["reason"])


def decide_publication(candidate: float | None, running: float | None, frames: str) -> dict[str, Any]:
    """Compare two AP50 in 0..1.

    Returns:
        `published` (whether the candidate is published), `reason`, and the values.
    """
    if candidate is None or running is None:
        better, reason = False, f"Kept the running student: AP50 on {frames} is not available for both students."
    else:
        better = candidate >= running
        verdict = "Published the retrained student" if better else "Kept the running student"
        reason = (
            f"{verdict}: AP50 on {frames} is {100 * candidate:.1f} % for the retrained student and "
            f"{100 * running:.1f} % for the running student."
        )
    values = {"candidate_ap50": candidate, "running_ap50": running}
    return {"published": better, "reason": reason, "frames": frames, **values}


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file, completely or not at all."""
    with source.open("rb") as original, files.atomic_write(target, "wb") as copy:
        shutil.copyfileobj(original, copy)


def _check_subject(metrics: Metrics, options: PublishOptions) -> None:
    """Refuse metrics of other models or other frames."""
    if metrics.inputs is None:
        message = f"{options.metrics} lacks the hashes of its models and frames. Run `cahqp evaluate` again."
        raise RunError(message)
    for name, path in ((CANDIDATE, options.candidate), (RUNNING, options.running)):
        check_measured(options.metrics, "model", name, metrics.inputs.weights, path)
    for number, path in enumerate(options.labelled, start=1):
        name = options.frames if number == 1 else f"{options.frames}-{number}"
        check_measured(options.metrics, "frames", name, metrics.inputs.frames, path)


def _ap50(metrics: Metrics, model: str, options: PublishOptions) -> float | None:
    frames = options.frames
    try:
        measured = metrics.models[model]
        others = [name for name in measured if re.fullmatch(rf"{re.escape(frames)}-\d+", name)]
        values = [measured[name].ap50 for name in (frames, *others)]
    except KeyError as error:
        message = f"{options.metrics} has no AP50 of {model} on {frames}. Run `cahqp evaluate` with both."
        raise RunError(message) from error
    known = [value for value in values if value is not None]
    return float(sum(known) / len(known)) if len(known) == len(values) else None
