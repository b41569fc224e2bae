"""Targets of plans and configs, of run directories and of the evidence that decides what is published."""

import contextlib
import json
import shutil
from argparse import ArgumentError
from pathlib import Path

import yaml
from fuzz.packages import make_package
from fuzz.target import Target, attempt, command

from cahqp.benchmarks.adapt.plan_reader import read_benchmark_plan
from cahqp.benchmarks.options import AdaptBenchmarkOptions
from cahqp.cli.options import parse
from cahqp.cycle.plan import read_plan
from cahqp.cycle.rounds.plan import has_rounds, read_rounds
from cahqp.edge.package import read_package
from cahqp.errors import CahqpError
from cahqp.files import sha256, write_json
from cahqp.gate.options import GateOptions
from cahqp.registry.registry import PromotionRequest, Registry
from cahqp.relabelling.options import RelabelOptions
from cahqp.runs.directory import open_run, verify
from cahqp.runs.evidence import read_decision, read_metrics
from cahqp.runs.manifest import MANIFEST, read_manifest
from cahqp.runs.state import State

_NAMES = ("train.json", "val.json", "night.json", "teacher.safetensors", "student.safetensors")
_BENCHMARK = Path(__file__).parents[2] / "configs" / "benchmark" / "synthetic-night.yaml"


def _plan(folder):
    def path(name):
        return str(folder / "given" / name)

    return {
        "name": "tiny",
        "seed": 3,
        "scenes": {"night": {"recordings": 1, "hour": [21, 22]}},
        "source": {"train": [path("train.json")], "val": [path("val.json")]},
        "target": {"train": [path("night.json")], "test": ["scenes:night"], "frame_interval": 0.5},
        "teacher": {
            "weights": path("teacher.safetensors"),
            "fit": [path("fit.yaml")],
            "adapt": [path("adapt.yaml")],
            **{arm: [path("mean.yaml")] for arm in ("mean_teacher", "ca_hqp", "oracle")},
        },
        "student": {"weights": path("student.safetensors"), "retrain": [path("retrain.yaml")]},
        "relabel": {"temporal": True, "ignore_share": 0.5},
        "arms": ["mean-teacher"],
    }


def make_plans(folder):
    case = folder.with_name("case")  # where the plans are read
    (folder / "given").mkdir()
    for name in _NAMES:
        (folder / "given" / name).write_text(name)
    for name in ("fit.yaml", "adapt.yaml", "mean.yaml", "retrain.yaml"):
        (folder / "given" / name).write_text("epochs: 1\n")
    plan = _plan(case)
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    shared = {key: plan[key] for key in ("source", "teacher", "student", "seed")}
    rounds = [{"name": name, "train": plan["source"]["val"]} for name in ("night", "fog")]
    whole = {"drift": {"window": 20}, "replay": {"capacity": 9}, "gate": {}, "rounds": rounds, "budget": 5}
    (folder / "rounds.yaml").write_text(yaml.safe_dump({"name": "year", **shared, **whole}))
    shutil.copy(_BENCHMARK, folder / "benchmark.yaml")
    (folder / "options.yaml").write_text(yaml.safe_dump({"weights": "m.safetensors", "frames": ["a"], "output": "o"}))
    gate = {"candidate": "a", "running": "b", "source": ["c.json"], "output": "o", "resamples": 100}
    (folder / "gate.yaml").write_text(yaml.safe_dump(gate))


def _parse(options, config):
    """Parse a config of options; `cahqp` prints both kinds of errors."""
    try:
        parse(options, [f"--config={config}"], "cahqp")
    except ArgumentError as error:
        raise CahqpError(str(error)) from error


def read_plans(folder, output, mutator):
    def benchmark():
        with contextlib.chdir(Path(__file__).parents[2]):  # its configs are named from there
            read_benchmark_plan(folder / "benchmark.yaml", AdaptBenchmarkOptions(plan=[]))

    def rounds():
        has_rounds(folder / "rounds.yaml")
        read_rounds(folder / "rounds.yaml")

    attempt(
        mutator,
        lambda: read_plan(folder / "plan.yaml", ["ca-hqp"]), rounds, benchmark,
        lambda: _parse(RelabelOptions, folder / "options.yaml"),
        lambda: _parse(GateOptions, folder / "gate.yaml"),
        lambda: command("cycle", "status", f"--plan={folder / 'plan.yaml'}"),
        lambda: command("cycle", "status", f"--plan={folder / 'rounds.yaml'}"),
    )  # fmt: skip


def make_run(folder):
    (folder / "input.json").write_text("{}")
    with open_run(folder / "run", "relabel", {"a": 1, "b": [0.5]}, {"frames": folder / "input.json"}, 2) as run:
        write_json(run.work / "labels.json", {"images": []})
        run.metrics = {"frames": 3}
    shutil.copytree(folder / "run", folder / "begun.partial")
    manifest = json.loads((folder / "begun.partial" / MANIFEST).read_text())
    identity = {key: manifest[key] for key in ("command", "version", "seed", "settings")}
    inputs = {role: entry["sha256"] for role, entry in manifest["inputs"].items()}
    write_json(folder / "begun.partial" / "identity.json", identity | {"inputs": inputs})
    (folder / "begun.partial" / MANIFEST).rename(folder / "begun.partial" / "kept.json")
    record = {"key": "a" * 64, "manifest_digest": None, "seconds": 1.5, "code": None}
    write_json(folder / "state.json", {"adapt": record, "relabel": record | {"manifest_digest": "b" * 64}})


def read_run(folder, output, mutator):
    def again(name):
        with open_run(folder / name, "relabel", {"a": 1, "b": [0.5]}, {"frames": folder / "input.json"}, 2) as run:
            if run is not None:
                run.metrics = {}

    attempt(
        mutator,
        lambda: read_manifest(folder / "run"), lambda: verify(folder / "run"), lambda: again("run"),
        lambda: again("begun"), lambda: State(folder),
    )  # fmt: skip


def make_evidence(folder):
    for role, seed in (("old", 1), ("new", 2)):
        (folder / f"{role}.safetensors").write_text(str(seed))
        make_package(folder / role, seed)
    (folder / "frames.json").write_text("{}")
    weights = {f"student-{role}": sha256(folder / f"{role}.safetensors") for role in ("old", "new")}
    inputs = {"weights": weights, "frames": {"target-test": sha256(folder / "frames.json")}}
    models = {name: {"target-test": {"ap50": 0.5}} for name in ("student-old", "student-new")}
    write_json(folder / "metrics.json", {"models": models, "inputs": inputs})
    packages = {
        role: {"package": read_package(folder / name).digest}
        for role, name in (("candidate", "new"), ("running", "old"))
    }
    sets = {"day": {"candidate_ap50": 0.5, "running_ap50": 0.4, "difference": 0.1, "low": 0.05}}
    more = {"mean_difference": 0.1, "sets": sets, "frames": {"source.day": "c" * 64}, "runtime": {"cahqp": "1"}}
    Registry(folder / "registry").promote(folder / "old", PromotionRequest())
    write_json(folder / "decision.json", {"published": True, "reason": "better", **packages, **more})


def read_evidence(folder, output, mutator):
    publish = [f"--{role}={folder / name}.safetensors" for role, name in (("candidate", "new"), ("running", "old"))]
    publish += [
        f"--metrics={folder / 'metrics.json'}",
        "--labelled",
        folder / "frames.json",
        f"--output={output / 'p'}",
    ]
    attempt(
        mutator,
        lambda: read_decision(folder / "decision.json"), lambda: read_metrics(folder / "metrics.json"),
        lambda: command("publish", *publish),
        lambda: command("registry", "promote", f"--registry={folder / 'registry'}", f"--package={folder / 'new'}",
                        f"--decision={folder / 'decision.json'}"),
    )  # fmt: skip


TARGETS = [
    Target("plans", make_plans, read_plans, fixed=("given/",)),
    Target("run-directory", make_run, read_run, fixed=("input.json",)),
    Target("evidence", make_evidence, read_evidence, fixed=("old", "new", "frames.json", "registry/")),
]
