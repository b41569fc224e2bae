"""`cahqp report`: one self-contained page about a cycle."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

from cahqp.errors import RunError
from cahqp.reports.accuracy import compare_models
from cahqp.reports.charts import read_log, training_panels
from cahqp.reports.inputs import put_first, read_object
from cahqp.reports.labels import compare_labels, read_labels
from cahqp.reports.options import ReportOptions
from cahqp.reports.page import write_page
from cahqp.reports.records import CycleRecord, EvaluationRecord, ManifestRecord
from cahqp.reports.rounds import describe_rounds, is_rounds_cycle
from cahqp.reports.warnings import collect_warnings
from cahqp.runs.directory import open_run
from cahqp.runs.evidence import Verdict
from cahqp.runs.state import State
from cahqp.version import __version__

STAGES = (
    "teacher-source", "student-source", "teacher-adapt", "teacher-adapt-self-training", "teacher-mean-teacher",
    "teacher-mean-teacher-self-training", "teacher-ca-hqp", "teacher-ca-hqp-self-training", "teacher-oracle",
)  # fmt: skip
"""Order of the trainings in the report. Other trainings follow."""

REPORT = "report.html"

_PACKAGES = ("torch", "torchvision", "lightning", "timm", "albumentations", "pycocotools", "opencv-python-headless")
_MANIFEST_KEYS = ("command", "version", "seed", "settings", "inputs", "metrics")


def report(options: ReportOptions) -> Path:
    """Write the report of a cycle and return the file. Unfinished parts are left out.

    Raises:
        RunError: `run` contains no cycle, or `output` belongs to another run.
    """
    run = options.run
    if is_rounds_cycle(run):
        template, variables = "rounds.html.j2", describe_rounds(run)
    else:
        template, variables = "cycle.html.j2", _describe_cycle(run, options.plan)
    if options.output is None:
        write_page(run / REPORT, template, **variables)
        return run / REPORT
    seed = int(read_object(run / "cycle.json", CycleRecord).get("seed", 0))
    with open_run(options.output, "report", {}, _inputs(run), seed) as stage:
        if stage is not None:
            write_page(stage.work / REPORT, template, **variables)
    return options.output / REPORT


def _describe_cycle(run: Path, plan: Path | None) -> dict[str, Any]:
    """Return the variables of `cycle.html.j2`."""
    after = read_labels(run / "relabel")
    metrics = read_object(run / "evaluate" / "metrics.json", EvaluationRecord)
    variables: dict[str, Any] = {
        "accuracy": compare_models(metrics),
        "labels": compare_labels(read_labels(run / "relabel-before"), after) if after else {},
        "trainings": _trainings(run),
    }
    if not any(variables.values()):
        message = f"{run} has no cycle: no evaluate/metrics.json, labels or trainings. Give the directory of a cycle."
        raise RunError(message)
    cycle = read_object(run / "cycle.json", CycleRecord)
    facts = {"cahqp": __version__} | ({"seed": str(cycle["seed"])} if "seed" in cycle else {})
    return {
        **variables,
        "warnings": collect_warnings(variables["labels"], metrics),
        "command": _cycle_command(run, plan),
        "name": str(cycle.get("name") or run.resolve().name),
        "decision": read_object(run / "published" / "decision.json", Verdict),
        "facts": facts | _versions() | _hardware(),
        "stages": _stages(run),
    }


def _inputs(run: Path) -> dict[str, Path]:
    """Return the directories of the stages that the page describes."""
    stages = {run / name for name in ("evaluate", "relabel-before", "relabel", "published") if (run / name).is_dir()}
    return {path.name: path for path in sorted(stages | {path.parent for path in run.glob("*/metrics.csv")})}


def _cycle_command(run: Path, plan: Path | None) -> str | None:
    """Return the command that runs the cycle, if it is known."""
    if plan is not None:
        return shlex.join(["cahqp", "cycle", "run", "--plan", str(plan)])
    return read_object(run / "cycle.json", CycleRecord).get("command")


def _trainings(run: Path) -> list[dict[str, Any]]:
    logs = {path.parent.name: path for path in sorted(run.glob("*/metrics.csv"))}
    return [{"name": name, **training_panels(read_log(logs[name]))} for name in put_first(STAGES, logs)]


def _stages(run: Path) -> list[dict[str, Any]]:
    """Return each stage's name, seconds (`None` if unknown) and manifest as JSON, without its outputs."""
    records = State(run).records
    stages = []
    for path in sorted(run.glob("*/manifest.json")):
        name, manifest = path.parent.name, read_object(path, ManifestRecord)
        settings = {key: manifest[key] for key in _MANIFEST_KEYS if key in manifest}
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        seconds = records[name].seconds if name in records else None
        stages.append({"name": name, "seconds": seconds, "manifest": text})
    return stages


def _versions() -> dict[str, str]:
    versions = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _hardware() -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [_field(path, "Model") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    processor = _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or "unknown"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{processor}, {cores} cores",
        "GPUs": ", ".join(gpus) or "none",
    }


def _field(path: Path, key: str) -> str:
    """Return the first value of a key in one of the kernel's `key: value` files, or an empty string."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    match = re.search(rf"^{key}\s*:(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""
