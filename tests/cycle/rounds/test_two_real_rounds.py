"""Two real rounds at 64 px, in the shape of the Bellevue plan; the second again, killed in the stages of rounds alone.

By hand: `pytest -m long tests/cycle/rounds/test_two_real_rounds.py`, some four minutes on a free core. Stages that
a single cycle has too are killed in `test_killed_cycle.py`.
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

ROOT = Path(__file__).parents[3]
SIZE = {"width": 112, "height": 64, "frames": 8}
KILLED = ("fetch", "features", "drift", "sample", "replay", "export", "gate", "published")
TINY = "configs/overlays/tiny.yaml"


def plan():
    return {
        "name": "two",
        "scenes": {
            "day": {"recordings": 2, "hour": [12, 15], **SIZE, "frames": 12},
            "val": {"recordings": 2, "hour": [12, 15], "first_recording": 100, **SIZE, "frames": 6},
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
        "budget": 8,
        "drift": {"when": "always", "window": 4, "block": 1},
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
        given = ["scenes", f"--output={tmp_path / name}", "--recordings=2", f"--first-recording={200 + 10 * number}"]
        assert main([*given, *flags, *more]) == 0

    def start(name):
        place = tmp_path / name
        if not place.exists():
            place.mkdir()
            for folder in ("configs", "weights"):  # copies: a tree that is worked on would make stages stale
                shutil.copytree(ROOT / folder, place / folder)
            for domain in ("night", "fog"):
                for camera, recording in enumerate(sorted((tmp_path / domain / "images").iterdir())):
                    shutil.copytree(recording, place / "frames" / domain / f"camera-{camera}")
            (place / "plan.yaml").write_text(yaml.safe_dump(plan()))
        command = [sys.executable, "-m", "cahqp", "cycle", "run", "--plan=plan.yaml"]
        log = (tmp_path / f"{name}.txt").open("ab")
        return subprocess.Popen(command, cwd=place, stdout=log, stderr=log, start_new_session=True)

    return start


def kill_inside(start, root, name, seconds):
    """Kill the whole group when this stage has run for so long, or a part of it where that came too late.

    Returns whether the stage was under way.
    """
    log, output = root / "logs" / f"{name}.log", root / name
    for part in (1, 0.5, 0.25, 0.1):
        log.unlink(missing_ok=True)
        process = start()
        while not log.exists() and process.poll() is None:
            time.sleep(0.01)
        try:
            process.wait(part * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not (output / "manifest.json").is_file():
            return True
        shutil.rmtree(output)
    return False


def run(place, *arguments):
    command = [sys.executable, "-m", "cahqp", *arguments]
    return subprocess.run(command, cwd=place, check=False, capture_output=True, text=True)


def copy_of_the_first_round(whole, killed):
    """Copy a directory in which two rounds are done, without the second one."""
    shutil.copytree(whole, killed, symlinks=True)
    for part in ("", "logs"):
        shutil.rmtree(killed / "runs/two" / part / "round-02")
    shutil.rmtree(killed / "registry")
    state = killed / "runs/two/state.json"
    left = {name: said for name, said in json.loads(state.read_text()).items() if not name.startswith("round-02/")}
    state.write_text(json.dumps(left))


def check_killed_round(start, whole, killed):
    """Kill the second round once in each stage that only rounds have; it must end like the one that was not killed."""
    spent = json.loads((whole / "runs/two/state.json").read_text())
    for number, stage in enumerate(KILLED):
        name = f"round-02/{stage}"
        share = (0.2, 0.4, 0.6)[number % 3]
        assert kill_inside(lambda: start("killed"), killed / "runs/two", name, share * spent[name]["seconds"]), name
    assert start("killed").wait() == 0
    for name in spent:
        if name.rpartition("/")[2] not in ("gate", "published"):  # they hold this machine's milliseconds
            one, two = (place / "runs/two" / name / "manifest.json" for place in (whole, killed))
            assert one.read_bytes() == two.read_bytes(), name
    verified = run(killed, "registry", "verify", "--registry=registry")
    assert verified.returncode == 0, verified.stderr


def test_two_rounds_and_the_second_killed_again_and_again(cycle, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cycle("whole").wait() == 0, (tmp_path / "whole.txt").read_text()
    told = run(whole, "cycle", "status", "--plan=plan.yaml").stdout
    assert "to do" not in told and "waits for" not in told
    assert "at the start" in told and "round-02" in told
    drift = json.loads((whole / "runs/two/round-02/drift/drift.json").read_text())
    assert set(drift["cameras"]) == {"camera-0", "camera-1"}
    assert {len(said["windows"]) for said in drift["cameras"].values()} == {2}
    page = (whole / "runs/two/report.html").read_text()
    for part in ("Accuracy of the running student", "Drift", "Gate decisions", "Labels of the last rounds"):
        assert part in page
    copy_of_the_first_round(whole, killed)
    check_killed_round(cycle, whole, killed)
