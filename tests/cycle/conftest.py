import os
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from cahqp.runs import executor

FAKE = Path(__file__).with_name("fake_cahqp.py")


@pytest.fixture
def plan_values():
    return {
        "name": "tiny",
        "scenes": {"night": {"recordings": 1, "hour": [21, 22]}},
        "source": {"train": ["train.json"], "val": ["val.json"]},
        "target": {"train": ["night.json"], "test": ["scenes:night"]},
        "teacher": {"weights": "teacher.safetensors", "adapt": ["adapt.yaml"], "mean_teacher": ["mean.yaml"]},
        "student": {"weights": "student.safetensors", "retrain": ["retrain.yaml"]},
    }


@pytest.fixture
def workplace(tmp_path, monkeypatch, plan_values):
    """A working directory with all that the plan names, and the fake command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(executor, "PROGRAM", (sys.executable, str(FAKE)))
    for name in ("train.json", "val.json", "night.json", "teacher.safetensors", "student.safetensors"):
        Path(name).write_text(name)
    for name in ("adapt.yaml", "mean.yaml", "retrain.yaml"):
        Path(name).write_text("epochs: 1\n")
    Path("plan.yaml").write_text(yaml.safe_dump(plan_values))
    return tmp_path


def rounds_plan(plan_values, **more):
    shared = {key: plan_values[key] for key in ("source", "teacher", "student")}
    shared["teacher"] = {key: value for key, value in shared["teacher"].items() if key != "mean_teacher"}
    rounds = [{"name": "night", "train": ["night.json"]}, {"name": "fog", "train": ["night.json"]}]
    whole = {"drift": {}, "replay": {}, "gate": {}, "rounds": rounds, "tests": {"night": "val.json"}}
    return {"name": "year", **shared, **whole, **more}


@pytest.fixture
def planned(workplace, plan_values):
    """Write `rounds.yaml`, a plan of two rounds, with more of it changed; `None` leaves a key out."""

    def write(**more):
        values = {key: value for key, value in rounds_plan(plan_values, **more).items() if value is not None}
        path = Path("rounds.yaml")
        path.write_text(yaml.safe_dump(values))
        return path

    write()
    return write


@pytest.fixture
def started(workplace, monkeypatch):
    """The same in this process, which is faster; the list of the stages that were started."""
    fake = runpy.run_path(str(FAKE))["main"]
    names = []

    def execute(command, log, watch):
        output = next((a for a in command if a.startswith("--output=")), None)
        if output:
            names.append(output.rpartition("/")[2])
        fake(command[2:])
        return 0

    monkeypatch.setattr(executor.process, "execute", execute)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power cut is expected here
    return names
