"""Two real rounds at 64 px, in the shape of the Bellevue plan, killed once in each stage.

By hand: `pytest -m long tests/cycle/test_two_real_rounds.py`, some ten minutes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cahqp.__main__ import main

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SIZE = {"width": 112, "height": 64, "frames": 8}
TINY = "configs/overlays/tiny.yaml"


def plan():
    return {
        "name": "two",
        "scenes": {
            "day": {"recordings": 2, "hour": [12, 15], **SIZE, "frames": 20},
            "val": {"recordings": 2, "hour": [12, 15], "first_recording": 100, **SIZE},
            "test": {"recordings": 1, "hour": [21, 22], "first_recording": 300, **SIZE},
        },
        "source": {"train": ["scenes:day"], "val": ["scenes:val"]},
        "rounds": [{"name": "night", "frames": "frames/night"}, {"name": "fog", "frames": "frames/fog"}],
        "tests": {"night": "scenes:test"},
        "teacher": {"weights": "weights/demo-teacher.safetensors", "adapt": ["configs/teacher/demo_adapt.yaml", TINY]},
        "student": {
            "weights": "weights/demo-student.safetensors",
            "retrain": ["configs/student/demo_retrain.yaml", TINY],
        },
        "relabel": {"threshold": 0.2},
        "budget": 12,
        "drift": {"when": "always", "window": 6, "block": 2},
        "replay": {"capacity": 20},
        "gate": {"registry": "registry"},
    }


@pytest.fixture
def cycle(tmp_path):
    """Start the rounds in a directory of their own, as a process group that can be killed as one."""
    for number, (name, more) in enumerate(
        {"night": ["--hour=[21,22]"], "fog": ["--hour=[12,13]", "--fog=0.6"]}.items()
    ):
        flags = [f"--{key}={value}" for key, value in SIZE.items()]
        given = ["scenes", f"--output={tmp_path / name}", "--recordings=2", f"--first_recording={200 + 10 * number}"]
        assert main([*given, *flags, *more]) == 0

    def start(name):
        place = tmp_path / name
        if not place.exists():
            place.mkdir()
            for folder in ("configs", "weights"):
                (place / folder).symlink_to(ROOT / folder)
            for domain in ("night", "fog"):
                shutil.copytree(tmp_path / domain / "images", place / "frames" / domain)
            (place / "plan.yaml").write_text(yaml.safe_dump(plan()))
        command = [sys.executable, "-m", "cahqp", "cycle", "run", "--plan=plan.yaml"]
        log = (tmp_path / f"{name}.txt").open("ab")
        return subprocess.Popen(command, cwd=place, stdout=log, stderr=log, start_new_session=True)

    return start


def kill_inside(process, log, seconds):
    """Kill the whole group when the stage of this log has run for so long; say whether it was still running."""
    while not log.exists() and process.poll() is None:
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait() == -signal.SIGKILL
    return False


def test_two_rounds_killed_in_every_stage_end_like_those_that_were_not(cycle, tmp_path):
    assert cycle("whole").wait() == 0, (tmp_path / "whole.txt").read_text()
    whole, killed = (tmp_path / name / "runs/two" for name in ("whole", "killed"))
    spent = json.loads((whole / "state.json").read_text())
    order = sorted(spent, key=lambda name: (whole / "logs" / f"{name}.log").stat().st_mtime)
    for number, name in enumerate(order):
        share = (0.3, 0.6, 0.9)[number % 3]
        assert kill_inside(cycle("killed"), killed / "logs" / f"{name}.log", share * spent[name]["seconds"]), name
    assert cycle("killed").wait() == 0, (tmp_path / "killed.txt").read_text()
    for name in order:
        if name.rpartition("/")[2] not in ("gate", "published"):  # they hold this machine's milliseconds
            assert (killed / name / "manifest.json").read_bytes() == (whole / name / "manifest.json").read_bytes(), name
    verified = [sys.executable, "-m", "cahqp", "registry", "verify", "--registry=registry"]
    assert subprocess.run(verified, cwd=tmp_path / "killed", check=False).returncode == 0
