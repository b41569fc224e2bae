import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cahqp
from cahqp import files
from cahqp.cycle.estimate import stage_costs
from cahqp.cycle.opening import open_cycle
from cahqp.cycle.publish import PublishOptions, decide_publication, publish
from cahqp.cycle.run import CycleRunOptions, run
from cahqp.cycle.status import lines
from cahqp.errors import ConfigError, RunError
from cahqp.runs import locks
from cahqp.runs.directory import verify

PLAN = Path("plan.yaml")
FAKE = Path(__file__).with_name("fake_cahqp.py")
STAGES = ["scenes-night", "relabel-before", "teacher-adapt", "relabel", "student-retrain", "evaluate", "published"]
ALL = [*STAGES, "report"]

DRIVER = f"""
import sys
from pathlib import Path
from cahqp.cycle import run
from cahqp.runs import executor
executor.PROGRAM = (sys.executable, {str(FAKE)!r})
run.run(run.CycleRunOptions(plan=Path("plan.yaml")))
"""


def run_plan(plan, **settings):
    run(CycleRunOptions(plan=plan, **settings))


def manifests(root):
    return {name: files.sha256(root / name / "manifest.json") for name in ALL}


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def kill_in(stage):
    """Start the cycle in a process of its own and kill it in the middle of one stage."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], env={**os.environ, "FAKE_HANG": stage}, stdout=subprocess.DEVNULL
    )
    wait_for(Path("runs/tiny") / f"{stage}.partial" / "first")
    driver.send_signal(signal.SIGKILL)
    driver.wait()


def test_python_returns_the_cycle(started):
    cycle = cahqp.run_cycle(CycleRunOptions(plan=PLAN))
    assert (cycle.path, sorted(cycle.stages)) == (Path("runs/tiny"), sorted(ALL))
    assert (cycle.model, cycle.report) == (
        cycle.path / "published/model.safetensors",
        cycle.path / "report/report.html",
    )
    assert cycle.metrics["evaluate"] == cycle.stages["evaluate"].metrics
    with pytest.raises(RunError, match="no published model yet"):
        cahqp.CycleRun(Path("elsewhere")).model  # noqa: B018


def test_cycle_ends_with_the_table(started, capsys):
    run_plan(PLAN)
    told = capsys.readouterr().out
    assert started == ALL
    assert "teacher, adapted" in told
    assert "70.0" in told
    assert "runs/tiny/report/report.html" in told


def test_the_remaining_time_is_told_until_the_last_stage(started, capsys):
    run_plan(PLAN)
    told = [line for line in capsys.readouterr().out.splitlines() if " done in " in line]
    assert all(re.search(r" done in [\d.]+ s, about .* left$", line) for line in told[:-1])
    assert told[-1].endswith(" s")
    costs = stage_costs(open_cycle(PLAN, None, None).stages)
    assert max(costs, key=costs.get) in ("teacher-adapt", "student-retrain")


def test_second_time_starts_nothing(started, capsys):
    run_plan(PLAN)
    started.clear()
    run_plan(PLAN)
    assert started == []
    assert capsys.readouterr().out.count("done before") == len(ALL)


def test_changed_input_makes_only_what_hangs_on_it_again(started):
    run_plan(PLAN)
    before = manifests(Path("runs/tiny"))
    started.clear()
    Path("retrain.yaml").write_text("epochs: 2\n")
    run_plan(PLAN)
    assert started == ["student-retrain", "evaluate", "published", "report"]
    assert Path("runs/tiny/stale/student-retrain-1/student-retrain/manifest.json").exists()
    assert manifests(Path("runs/tiny"))["relabel"] == before["relabel"]


def test_comment_in_a_config_changes_nothing(started):
    run_plan(PLAN)
    started.clear()
    Path("retrain.yaml").write_text("# a word\nepochs: 1\n")
    run_plan(PLAN)
    assert started == []


def test_same_result_upstream_stops_there(started):
    run_plan(PLAN)
    Path("runs/tiny/state.json").unlink()
    before = manifests(Path("runs/tiny"))
    run_plan(PLAN)
    assert manifests(Path("runs/tiny")) == before
    assert not Path("runs/tiny/stale").exists()


def test_removed_stage_is_made_again_and_nothing_else(started):
    run_plan(PLAN)
    started.clear()
    shutil.rmtree("runs/tiny/relabel")
    run_plan(PLAN)
    assert started == ["relabel"]


def test_removed_file_is_named(started):
    run_plan(PLAN)
    Path("runs/tiny/relabel/labels.json").unlink()
    with pytest.raises(RunError, match=r"student-retrain needs runs/tiny/relabel/labels\.json"):
        run_plan(PLAN)


def test_stage_directory_of_someone_else_is_not_touched(started):
    Path("runs/tiny/relabel").mkdir(parents=True)
    Path("runs/tiny/relabel/thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="runs/tiny/relabel is not a finished run"):
        run_plan(PLAN)


def test_moved_cycle_goes_on(started):
    run_plan(PLAN)
    started.clear()
    Path("runs/tiny").rename("elsewhere")
    run_plan(PLAN, output=Path("elsewhere"))
    assert started == []


def test_arms_are_added_and_stay(started):
    run_plan(PLAN)
    started.clear()
    run_plan(PLAN, arms=["mean-teacher"])
    assert started == ["teacher-mean-teacher", "evaluate", "report"]
    started.clear()
    run_plan(PLAN)
    assert started == []


def test_other_seed_has_a_directory_of_its_own(started):
    run_plan(PLAN, seed=7)
    assert Path("runs/tiny-seed7/published/model.safetensors").exists()


def test_seed_of_a_begun_cycle_cannot_change(started):
    run_plan(PLAN, output=Path("out"))
    with pytest.raises(RunError, match="out was begun with seed 0, not 1"):
        run_plan(PLAN, output=Path("out"), seed=1)


def test_worse_student_is_not_published(started, monkeypatch):
    monkeypatch.setenv("FAKE_WORSE", "1")
    run_plan(PLAN)
    published = Path("runs/tiny/published")
    assert (published / "model.safetensors").read_text() == "student.safetensors"
    assert "Kept the running student" in files.read_json(published / "decision.json")["reason"]
    assert verify(published) == []


def test_better_student_is_published(started):
    run_plan(PLAN)
    new, published = (Path("runs/tiny") / name / "model.safetensors" for name in ("student-retrain", "published"))
    assert published.read_text() == new.read_text()


@pytest.mark.parametrize(("candidate", "published"), [(0.5, True), (0.49, False), (None, False)])
def test_decision(candidate, published):
    assert decide_publication(candidate, 0.5, "target-test")["published"] is published


def test_several_test_files_decide_by_their_mean(tmp_path):
    scores = {"student-old": (0.5, 0.5), "student-new": (0.6, 0.3)}
    models = {n: {"target-test": {"ap50": a}, "target-test-2": {"ap50": b}} for n, (a, b) in scores.items()}
    for name in ("old", "new"):
        (tmp_path / name).write_text(name)
    weights = {f"student-{name}": files.sha256(tmp_path / name) for name in ("old", "new")}
    content = {"models": models, "inputs": {"weights": weights, "frames": {}}}
    files.write_json(tmp_path / "metrics.json", content)
    paths = {"candidate": tmp_path / "new", "running": tmp_path / "old", "metrics": tmp_path / "metrics.json"}
    publish(PublishOptions(**paths, output=tmp_path / "published"))
    assert (tmp_path / "published" / "model.safetensors").read_text() == "old"


def test_unmeasured_student_is_an_error(tmp_path):
    files.write_json(tmp_path / "metrics.json", {"models": {"student-new": {}}})
    with pytest.raises(RunError, match="no AP50 of student-new on target-test"):
        publish(
            PublishOptions(
                candidate=tmp_path,
                running=tmp_path,
                metrics=tmp_path / "metrics.json",
                output=tmp_path / "published",
            )
        )


def test_dry_run_prints_commands_and_touches_nothing(workplace, capsys, monkeypatch):
    monkeypatch.setattr("cahqp.cycle.run.check_plan", lambda path, plan: None)  # the files here are placeholders
    before = sorted(workplace.iterdir())
    run_plan(PLAN, dry_run=True)
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in told[:2]] == [["cahqp", "scenes"], ["cahqp", "relabel"]]
    assert len(told) == len(ALL)
    assert sorted(workplace.iterdir()) == before


@pytest.mark.parametrize("flags", [{"arms": ["oracel"]}, {"seed": -1}])
def test_flags_are_checked_first(workplace, flags):
    with pytest.raises(ConfigError):
        run_plan(PLAN, **flags)
    assert not Path("runs").exists()


def test_failed_stage_says_what_and_how_to_go_on(workplace, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "teacher-adapt")
    with pytest.raises(RunError) as caught:
        run_plan(PLAN)
    told = str(caught.value)
    assert "Stage teacher-adapt ended with exit code 3" in told
    assert "the lamp is broken" in told
    assert "runs/tiny/logs/teacher-adapt.log" in told
    assert "rerun the same command" in told
    assert len(told.splitlines()) < 25


def test_failed_stage_goes_on(workplace, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_FAIL", "teacher-adapt")
    with pytest.raises(RunError):
        run_plan(PLAN)
    monkeypatch.delenv("FAKE_FAIL")
    run_plan(PLAN)
    assert "scenes-night: done before" in capsys.readouterr().out


def test_killed_in_every_stage_ends_the_same(workplace):
    # `published` is over in no time; tests/runs/test_directory.py kills run directories at their last step.
    for stage in [name for name in ALL if name != "published"]:
        kill_in(stage)
    subprocess.run([sys.executable, "-c", DRIVER], check=True, stdout=subprocess.DEVNULL)
    killed = manifests(Path("runs/tiny"))
    Path("runs/tiny").rename("killed")
    subprocess.run([sys.executable, "-c", DRIVER], check=True, stdout=subprocess.DEVNULL)
    assert manifests(Path("runs/tiny")) == killed


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_killed_cycle_leaves_no_stage_behind(workplace):
    kill_in("relabel")
    deadline = time.monotonic() + 5
    while locks.is_held(Path("runs/tiny/relabel")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not locks.is_held(Path("runs/tiny/relabel"))


def test_second_cycle_in_the_same_directory_is_refused(workplace, monkeypatch):
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], env={**os.environ, "FAKE_HANG": "scenes-night"}, stdout=subprocess.DEVNULL
    )
    wait_for(Path("runs/tiny/scenes-night.partial/first"))
    monkeypatch.setattr(locks, "GRACE_SECONDS", 0.0)
    with pytest.raises(RunError, match="runs/tiny is in use by another process"):
        run_plan(PLAN)
    assert any("scenes-night" in line and "running" in line for line in lines(PLAN))
    driver.kill()
    driver.wait()


def test_status_before_anything(workplace):
    told = lines(PLAN)
    assert told[1].split() == ["scenes-night", "to", "do"]
    assert "waits for scenes-night" in next(line for line in told if line.startswith("evaluate"))
    assert told[-2:] == ["Next: scenes-night", "  cahqp cycle run --plan=plan.yaml --output=runs/tiny --seed=0"]
    assert not Path("runs").exists()


def test_status_of_a_partial_stage(workplace, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "relabel")
    with pytest.raises(RunError):
        run_plan(PLAN)
    told = {line.split()[0]: line for line in lines(PLAN) if line}
    assert told["teacher-adapt"].endswith("done")
    assert told["relabel"].endswith("partial: the lamp is broken")
    assert "waits for relabel" in told["student-retrain"]


def test_status_says_what_has_changed(started):
    run_plan(PLAN)
    Path("retrain.yaml").write_text("epochs: 2\n")
    told = {line.split()[0]: line for line in lines(PLAN) if line}
    assert told["student-retrain"].endswith("its inputs have changed")
    assert told["relabel"].endswith("done")


def test_status_of_a_finished_cycle_shows_the_table(started):
    run_plan(PLAN, output=Path("out"), seed=3)
    assert "Published: out/published/model.safetensors" in lines(PLAN, Path("out"))


def test_damaged_state_says_what_to_do(started):
    run_plan(PLAN)
    Path("runs/tiny/state.json").write_text("{")
    with pytest.raises(RunError, match="Remove it and rerun the same command"):
        run_plan(PLAN)


def test_no_torch_anywhere():
    code = "import sys, cahqp.cycle.run, cahqp.cycle.status, cahqp.cycle.publish; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
