import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cahqp import files
from cahqp.cycle.opening import open_cycle
from cahqp.cycle.run import CycleRunOptions, run
from cahqp.cycle.status import lines
from cahqp.errors import CahqpError, ConfigError, RunError

PLAN = Path("rounds.yaml")
FAKE = Path(__file__).parents[1] / "fake_cahqp.py"
TURN = ["teacher-adapt", "relabel", "replay", "student-retrain", "evaluate", "export", "gate", "published"]
DRIVER = f"""
import sys
from pathlib import Path
from cahqp.cycle import run
from cahqp.runs import executor
executor.PROGRAM = (sys.executable, {str(FAKE)!r})
run.run(run.CycleRunOptions(plan=Path("rounds.yaml")))
"""


def run_plan(plan, **settings):
    run(CycleRunOptions(plan=plan, **settings))


def names(root=Path("runs/year")):
    return list(json.loads((root / "state.json").read_text()))


def test_two_rounds_hang_together(started, planned):
    run_plan(PLAN)
    first = [f"round-01/{name}" for name in ("features", "drift", *TURN)]
    second = [f"round-02/{name}" for name in ("features", "drift", *TURN)]
    assert sorted(names()) == sorted(["features-source", "export-start", *first, *second])
    stages = {stage.name: " ".join(stage.arguments) for stage in open_cycle(PLAN, None, None).stages}
    root = "runs/year/"
    assert f"--model.weights={root}round-01/published/model.safetensors" in stages["round-02/student-retrain"]
    assert f"{root}round-02/replay/past.json" in stages["round-02/student-retrain"]
    assert "past.json" not in stages["round-01/student-retrain"]
    assert f"--running={root}round-01/published/package" in stages["round-02/gate"]
    assert f"--replay night={root}round-01/replay/night/held.json" in stages["round-02/gate"]
    assert "--model.weights=teacher.safetensors" in stages["round-02/teacher-adapt"]
    assert f"night-round-01={root}round-01/features" in stages["round-02/drift"]


def test_a_round_may_refit_its_teacher(started, planned, plan_values):
    planned(teacher=plan_values["teacher"] | {"self_training": plan_values["teacher"]["adapt"]})
    run_plan(PLAN)
    assert {"round-01/teacher-adapt-labels", "round-01/teacher-adapt-self-training"} < set(names())
    stages = {stage.name: " ".join(stage.arguments) for stage in open_cycle(PLAN, None, None).stages}
    refitted = "runs/year/round-01/teacher-adapt-self-training/model.safetensors"
    assert f"--weights={refitted}" in stages["round-01/relabel"]
    assert f"teacher-adapted={refitted}" in stages["round-01/evaluate"]


def test_rounds_of_one_domain_are_judged_as_one_set(started, planned):
    rounds = [{"name": name, "train": ["night.json"]} for name in ("night", "night", "fog")]
    planned(rounds=rounds)
    run_plan(PLAN)
    stages = {stage.name: " ".join(stage.arguments) for stage in open_cycle(PLAN, None, None).stages}
    buffer = "runs/year/round-02/replay"
    assert f"night={buffer}/night/held.json night={buffer}/night.2/held.json" in stages["round-03/gate"]


def test_a_round_without_drift_changes_nothing(started, planned, monkeypatch):
    monkeypatch.setenv("FAKE_GROUPS", json.dumps({"round-01": []}))
    run_plan(PLAN)
    assert "round-01/teacher-adapt" not in names()
    stages = {stage.name: " ".join(stage.arguments) for stage in open_cycle(PLAN, None, None).stages}
    assert "--model.weights=student.safetensors" in stages["round-02/student-retrain"]


def test_always_adapts_without_drift_too(started, planned, monkeypatch):
    planned(drift={"when": "always"})
    monkeypatch.setenv("FAKE_GROUPS", json.dumps({"round-01": []}))
    run_plan(PLAN)
    assert "round-01/teacher-adapt" in names()


def test_each_group_of_cameras_has_one_adaptation(started, planned, monkeypatch):
    monkeypatch.setenv("FAKE_GROUPS", json.dumps({"round-01": [["a", "b"], ["c"]]}))
    run_plan(PLAN)
    stages = {stage.name: stage.arguments for stage in open_cycle(PLAN, None, None).stages}
    given = stages["round-01/group-1/sample"]
    assert given[given.index("--cameras") + 1 : given.index("--cameras") + 3] == ("a", "b")
    before = "--model.weights=runs/year/round-01/group-1/published/model.safetensors"
    assert before in stages["round-01/group-2/student-retrain"]


def test_a_refused_candidate_leaves_the_old_student(started, planned, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_KEEP", "round-01")
    run_plan(PLAN)
    assert Path("runs/year/round-01/published/model.safetensors").read_text() == "student.safetensors"
    told = capsys.readouterr().out
    assert "round-01, kept" in told
    assert "round-02, published" in told


def test_only_what_a_running_student_has_learnt_is_known(started, planned, monkeypatch):
    monkeypatch.setenv("FAKE_KEEP", "round-01")
    planned(rounds=[{"name": name, "train": ["night.json"]} for name in ("night", "night", "fog")])
    run_plan(PLAN)
    stages = {stage.name: " ".join(stage.arguments) for stage in open_cycle(PLAN, None, None).stages}
    assert "night-round-01=" not in stages["round-02/drift"]
    assert "night-round-01=" not in stages["round-03/drift"]
    assert "night-round-02=runs/year/round-02/features" in stages["round-03/drift"]


def test_of_several_groups_those_are_known_whose_student_went_out(started, planned, monkeypatch):
    monkeypatch.setenv("FAKE_GROUPS", json.dumps({"round-01": [["a"], ["b"]]}))
    monkeypatch.setenv("FAKE_KEEP", "group-2")
    run_plan(PLAN)
    stages = {stage.name: " ".join(stage.arguments) for stage in open_cycle(PLAN, None, None).stages}
    assert "night-round-01-group-1=runs/year/round-01/group-1/known " in stages["round-02/drift"]
    assert "--cameras a " in stages["round-01/group-1/known"] + " "
    assert "group-2" not in stages["round-02/drift"]
    assert "round-01/features " not in stages["round-02/drift"]


def test_a_round_that_was_steady_is_not_known_either(started, planned, monkeypatch):
    monkeypatch.setenv("FAKE_GROUPS", json.dumps({"round-01": []}))
    run_plan(PLAN)
    stages = {stage.name: " ".join(stage.arguments) for stage in open_cycle(PLAN, None, None).stages}
    assert "night-round-01=" not in stages["round-02/drift"]


def test_a_faulty_camera_is_never_adapted_to(started, planned, monkeypatch):
    monkeypatch.setenv("FAKE_CAMERAS", "north dark")
    monkeypatch.setenv("FAKE_GROUPS", json.dumps({"round-01": []}))
    planned(drift={"when": "always"})
    run_plan(PLAN)
    stages = {stage.name: " ".join(stage.arguments) for stage in open_cycle(PLAN, None, None).stages}
    assert "--cameras north " in stages["round-01/sample"] + " "
    monkeypatch.setenv("FAKE_CAMERAS", "dark")
    run_plan(PLAN, output=Path("runs/dark"))
    assert "round-01/teacher-adapt" not in names(Path("runs/dark"))


def test_the_report_is_written_without_a_decision_and_after_a_kill(started, planned, monkeypatch):
    monkeypatch.setenv("FAKE_GROUPS", json.dumps({"round-01": [], "round-02": []}))
    run_plan(PLAN)
    report = Path("runs/year/report.html")
    assert report.is_file()
    report.unlink()
    run_plan(PLAN)
    assert report.is_file()


def test_what_runs_for_comparison_leaves_the_registry_alone(planned):
    planned(gate={"registry": "fleet"})
    assert open_cycle(PLAN, None, None).plan.gate.registry == "fleet"
    assert open_cycle(PLAN, None, None, replay=False).plan.gate.registry is None
    assert open_cycle(PLAN, None, 7).plan.gate.registry is None


def test_without_replay_and_gate_it_publishes_by_figures(started, planned):
    planned(replay=None, gate=None, drift=None)
    run_plan(PLAN)
    assert "round-01/replay" not in names()
    assert files.read_json(Path("runs/year/round-02/published/decision.json"))["published"]


def test_replay_can_be_left_out_beside_the_whole(started, planned):
    run_plan(PLAN, replay=False)
    assert "round-01/replay" not in names(Path("runs/year-without-replay"))
    with pytest.raises(RunError, match="begun with replay False, not True"):
        run_plan(PLAN, output=Path("runs/year-without-replay"))


def test_second_time_starts_nothing_and_a_change_only_what_hangs_on_it(started, planned):
    run_plan(PLAN)
    started.clear()
    run_plan(PLAN)
    assert started == []
    Path("retrain.yaml").write_text("epochs: 3\n")
    run_plan(PLAN)
    assert started[0] == "student-retrain"
    assert "teacher-adapt" not in started


def test_a_failed_stage_says_how_to_go_on(planned, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "relabel")
    with pytest.raises(RunError, match=r"(?s)round-01/relabel ended with exit code 3.*the lamp is broken.*to resume"):
        run_plan(PLAN)
    told = lines(PLAN)
    assert any("round-01/relabel " in line and "partial" in line for line in told)
    assert told[-1] == "  cahqp cycle run --plan=rounds.yaml --output=runs/year --seed=0"


def test_status_of_finished_rounds(started, planned):
    run_plan(PLAN)
    assert "round-02, published" in "\n".join(lines(PLAN))


def test_killed_in_several_stages_ends_like_one_that_was_not(planned, started, workplace):
    run_plan(PLAN, output=Path("whole"))
    stages = [stage.name for stage in open_cycle(PLAN, Path("whole"), None).stages]
    hanging = [name for name in stages if not name.endswith("published")]
    for name in hanging[:: max(1, len(hanging) // 6)]:
        hang = "/".join((Path("runs/year") / name).parts[-2:])
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER], env={**os.environ, "FAKE_HANG": hang}, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not Path("runs/year", f"{name}.partial", "first").exists():
            assert time.monotonic() < deadline, name
            time.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    started.clear()
    run_plan(PLAN)
    for name in stages:
        assert files.sha256(Path("runs/year", name, "manifest.json")) == files.sha256(
            Path("whole", name, "manifest.json")
        ), name


def arrive(camera, count, start=0, age=100.0):
    folder = Path("incoming") / camera
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        path = folder / f"{number}.jpg"
        path.write_bytes(f"{camera}{number}".encode())
        os.utime(path, (time.time() - age, time.time() - age))


def test_a_folder_that_fills_makes_rounds(started, planned):
    planned(rounds=None, watch={"frames": "incoming", "min_frames": 4, "seconds": 0.01})
    arrive("north", 3)
    run_plan(PLAN)
    assert not [name for name in names() if name.startswith("round")]
    arrive("north", 3, start=3)
    run_plan(PLAN, watch=True, rounds=1)
    arrive("north", 5, start=6)
    run_plan(PLAN)
    second = files.read_json(Path("runs/year/round-02/fetch/taken.json"))["files"]
    assert sorted(second) == [f"north/{n}.jpg" for n in sorted(map(str, range(6, 11)))]


def test_a_round_whose_fetch_took_nothing_looks_at_what_is_there_now(started, planned):
    planned(rounds=None, watch={"frames": "incoming", "min_frames": 1, "settle": 0})
    arrive("north", 1)
    broken = Path("incoming/north/0.jpg").rename("incoming/north/0.mp4")
    with pytest.raises(CahqpError, match="gave a frame"):  # the stand-in runs it in this process
        run_plan(PLAN)
    broken.unlink()
    arrive("north", 2, age=-1.0)  # newer than what the round was made for
    time.sleep(1.1)
    run_plan(PLAN)
    assert "round-01/published" in names()
    assert len(files.read_json(Path("runs/year/rounds.json"))["rounds"]) == 1


def test_files_that_are_being_written_are_waited_for(started, planned):
    planned(rounds=None, watch={"frames": "incoming", "min_frames": 2, "settle": 30})
    arrive("north", 3, age=1.0)
    run_plan(PLAN)
    assert not Path("runs/year/rounds.json").exists()


def test_a_camera_that_always_writes_does_not_hold_up_what_is_there(started, planned):
    planned(rounds=None, watch={"frames": "incoming", "min_frames": 2, "settle": 30})
    arrive("north", 3)
    arrive("north", 1, start=3, age=1.0)
    run_plan(PLAN)
    assert "round-01/published" in names()
    taken = files.read_json(Path("runs/year/round-01/fetch/taken.json"))["files"]
    assert sorted(taken) == ["north/0.jpg", "north/1.jpg", "north/2.jpg"]


def test_one_drifted_group_leaves_the_other_cameras_out(started, planned, monkeypatch):
    monkeypatch.setenv("FAKE_CAMERAS", "north south")
    planned(drift={"when": "drifted"})
    run_plan(PLAN)
    stages = {stage.name: " ".join(stage.arguments) for stage in open_cycle(PLAN, None, None).stages}
    assert "--cameras north " in stages["round-01/sample"] + " "
    assert "round-01/sample/frames.json" in stages["round-01/teacher-adapt"]
    planned(drift={"when": "always"})
    stages = {stage.name: " ".join(stage.arguments) for stage in open_cycle(PLAN, None, None).stages}
    assert "round-01/sample" not in stages


def test_watching_needs_a_folder(started, planned):
    with pytest.raises(ConfigError, match="--watch needs a section"):
        run_plan(PLAN, watch=True)
