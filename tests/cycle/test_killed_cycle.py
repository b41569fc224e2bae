"""A real cycle, killed once in each of its stages: `pytest -m long tests/cycle/test_killed_cycle.py`, four minutes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SIZE = {"width": 112, "height": 64, "frames": 6}


def plan():
    tiny = "configs/overlays/tiny.yaml"
    return {
        "name": "tiny",
        "scenes": {
            "day": {"recordings": 2, "hour": [12, 15], **SIZE},
            "val": {"recordings": 1, "hour": [12, 15], "first_recording": 100, **SIZE},
            "night": {"recordings": 2, "hour": [18, 20], "first_recording": 200, **SIZE},
        },
        "source": {"train": ["scenes:day"], "val": ["scenes:val"]},
        "target": {"train": ["scenes:night"]},
        "teacher": {"weights": "weights/demo-teacher.safetensors", "adapt": ["configs/teacher/demo_adapt.yaml", tiny]},
        "student": {
            "fit": ["configs/student/demo.yaml", tiny],
            "retrain": ["configs/student/demo_retrain.yaml", tiny],
        },
        "relabel": {"threshold": 0.2},
    }


@pytest.fixture
def cycle(tmp_path):
    """Start the cycle in a directory of its own, as a process group that can be killed as one."""
    for folder in ("configs", "weights"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan()))

    def start(name):
        command = [sys.executable, "-m", "cahqp", "cycle", "run", "--plan=plan.yaml", f"--output={name}"]
        log = (tmp_path / f"{name}.txt").open("ab")
        return subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)

    return start


def stages(folder):
    """Return the stages in the order in which they ended, each with its seconds."""
    records = json.loads((folder / "state.json").read_text())
    ended = sorted(records, key=lambda name: (folder / f"logs/{name}.log").stat().st_mtime_ns)
    return {name: records[name]["seconds"] for name in ended}


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


def test_a_cycle_killed_in_every_stage_ends_like_one_that_was_not(cycle, tmp_path):
    assert cycle("whole").wait() == 0, (tmp_path / "whole.txt").read_text()
    spent = stages(tmp_path / "whole")
    for number, (name, seconds) in enumerate(spent.items()):
        share = (0.2, 0.4, 0.6)[number % 3]
        assert kill_inside(cycle("killed"), tmp_path / f"killed/logs/{name}.log", share * seconds), name
    assert cycle("killed").wait() == 0, (tmp_path / "killed.txt").read_text()
    assert json.loads((tmp_path / "whole/relabel/labels.json").read_text())["annotations"]
    for file in ("relabel/labels.json", "student-retrain/model.safetensors", "published/model.safetensors"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
