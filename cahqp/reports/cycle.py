"""One page that tells a whole cycle: it opens offline, on any device, and needs nothing but itself."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import cahqp
from cahqp.errors import RunError
from cahqp.files import atomic_write, read_json
from cahqp.reports import tables
from cahqp.reports.curves import panels, read_curves
from cahqp.reports.html import Markup, document, element, folded, join, section, table
from cahqp.reports.labels import labelled_frames, read_labels
from cahqp.reports.rounds import compose_rounds, is_rounds
from cahqp.runs.directory import RunDirectory

STAGES = (
    "teacher-source", "student-source", "teacher-adapt", "teacher-adapt-self-training", "teacher-mean-teacher",
    "teacher-mean-teacher-self-training", "teacher-ca-hqp", "teacher-ca-hqp-self-training", "teacher-oracle",
)  # fmt: skip
"""The order of the trainings; others follow."""

REPORT = "report.html"

_PACKAGES = ("torch", "torchvision", "lightning", "timm", "albumentations", "pycocotools", "opencv-python-headless")


def report(run: Path, output: Path | None = None, plan: Path | None = None) -> Path:
    """Write the report of a cycle. What the cycle has not made yet is left out, and said to be.

    Args:
        run: The cycle's directory.
        output: Directory to make, with `report.html` and its manifest, as a stage of the cycle. Default none:
            `report.html` in `run`, written anew each time.
        plan: The cycle's plan, for the command that adds comparisons. Default what `cycle.json` or `plan.json` say.

    Returns:
        The file that was written.

    Raises:
        RunError: There is no such directory, nothing of a cycle in it, or `output` holds something else.
    """
    run = Path(run)
    page = compose(run, plan)
    if output is None:
        _write(run / REPORT, page)
        return run / REPORT
    directory = RunDirectory(Path(output), "report", {}, _inputs(run), int(_read(run / "cycle.json").get("seed", 0)))
    if directory.begin():
        _write(directory.work / REPORT, page)
        directory.finish({})
    return directory.output / REPORT


def compose(run: Path, plan: Path | None = None) -> Markup:
    """Return the page; see `report`."""
    if is_rounds(run):
        return compose_rounds(run)
    parts = [_models(run, plan), _labels(run), _trainings(run), _settings(run)]
    if not any(parts[:3]):
        message = (
            f"{run} holds no cycle: neither evaluate/metrics.json nor labels nor trainings. Give the directory of one."
        )
        raise RunError(message)
    name = str(_read(run / "cycle.json").get("name") or run.resolve().name)
    head = element(
        "header",
        element("h1", f"Cycle {name}"),
        element("p", "Teacher adapted, frames relabelled, student retrained and compared.", class_="soft"),
        _decision(run),
    )
    return document(f"cahqp: {name}", head, *parts)


def _write(path: Path, page: Markup) -> None:
    with atomic_write(path) as file:
        file.write(page + "\n")


def _inputs(run: Path) -> dict[str, Path]:
    """Return the directories of the stages that the page tells of."""
    shown = {run / name for name in ("evaluate", "relabel-before", "relabel", "published") if (run / name).is_dir()}
    return {path.name: path for path in sorted(shown | {path.parent for path in run.glob("*/metrics.csv")})}


def _decision(run: Path) -> Markup:
    decision = _read(run / "published" / "decision.json")
    return tables.verdict(decision) if decision else _absent("Nothing has been decided yet.")


def _models(run: Path, plan: Path | None) -> Markup:
    metrics = _read(run / "evaluate" / "metrics.json")
    models = metrics.get("models", {})
    if not models:
        return Markup("")
    explained = (
        "AP50 as COCO counts it: 101 points, mean over the classes that have objects. The target's labels are read "
        "here and, where there is one, by the oracle; by nothing else. Brackets hold 95 % of a paired bootstrap."
    )
    return section(
        "What the models reach",
        tables.accuracy(models, metrics.get("differences", [])),
        tables.missing_arms(models, _command(run, plan)),
        element("p", explained, class_="soft"),
        element("h3", "By class"),
        tables.per_class(models),
    )


def _command(run: Path, plan: Path | None) -> str | None:
    """Return the command that carries the cycle out."""
    if plan is None:
        cycle, kept = _read(run / "cycle.json"), _read(run / "plan.json")
        if cycle.get("command"):
            return str(cycle["command"])
        path = kept.get("plan") or kept.get("path")
    else:
        path = plan
    return shlex.join(["cahqp", "cycle", "run", "--plan", str(path)]) if path else None


def _labels(run: Path) -> Markup:
    after = read_labels(run / "relabel")
    if after is None:
        return Markup("")
    return section("Pseudo-labels", labelled_frames(read_labels(run / "relabel-before"), after))


def _trainings(run: Path) -> Markup:
    found = {path.parent.name: path for path in sorted(run.glob("*/metrics.csv"))}
    names = [name for name in STAGES if name in found] + [name for name in found if name not in STAGES]
    drawn = []
    for name in names:
        curves = read_curves(found[name])
        drawn += [element("h3", name), panels(curves) if curves else _absent("Its log holds no figures.")]
    return section("Training", *drawn)


def _settings(run: Path) -> Markup:
    manifests = {path.parent.name: read_json(path) for path in sorted(run.glob("*/manifest.json"))}
    cycle, state = _read(run / "cycle.json"), _read(run / "state.json")
    facts = [["cahqp", cahqp.__version__]]
    facts += [["seed", str(cycle["seed"])]] if "seed" in cycle else []
    facts += [[name, version] for name, version in _versions().items()]
    facts += [[name, value] for name, value in _hardware().items()]
    stages = [_stage(name, manifest, state.get(name, {}).get("seconds")) for name, manifest in manifests.items()]
    return section(
        "How it was made", element("div", table(["", "this report was made with"], facts), class_="facts"), *stages
    )


def _stage(name: str, manifest: Mapping[str, Any], seconds: float | None) -> Markup:
    keys = ("command", "version", "seed", "settings", "inputs", "metrics")
    kept = {key: manifest[key] for key in keys if key in manifest}
    took = f" · {seconds:.0f} s" if seconds is not None else ""
    return folded(name + took, element("pre", json.dumps(kept, indent=2, ensure_ascii=False)))


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
    """Return the first value of a key in one of the kernel's `key: value` files, empty where there is none."""
    if not path.is_file():
        return ""
    lines = (line.partition(":") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no file."""
    found = read_json(path) if path.is_file() else {}
    return dict(found)


def _absent(said: str) -> Markup:
    return join([element("p", said, class_="missing")])
