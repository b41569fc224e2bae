from pathlib import Path

import pytest

from cahqp.__main__ import main
from cahqp.cycle.opening import open_cycle
from cahqp.cycle.rounds.plan import read_rounds
from cahqp.cycle.run import CycleRunOptions, run
from cahqp.errors import ConfigError


def run_plan(plan, **settings):
    run(CycleRunOptions(plan=plan, **settings))


def arguments(path):
    return {stage.name: " ".join(stage.arguments) for stage in open_cycle(path, None, None).stages}


def test_a_gate_of_int8_packages_has_frames_to_measure_them_on(started, planned):
    stages = arguments(planned(gate={"precision": "int8"}))
    assert "--labelled val.json" in stages["export-start"] and "--calibration" in stages["export-start"]


def test_the_gate_judges_what_int8_loses_and_no_candidate_stops_the_plan(planned):
    stages = arguments(planned(gate={"precision": "int8"}))
    assert "--max-loss=1" in stages["round-01/export"].split()
    assert "--max-loss" not in stages["export-start"]  # nothing runs yet that could be kept
    assert "--max-loss" not in arguments(planned())["round-01/export"]


def test_a_registry_taken_out_of_the_plan_repeats_no_training(started, planned):
    run_plan(planned(gate={"registry": "fleet"}))
    started.clear()
    run_plan(planned())
    assert set(started) == {"published"}


def test_a_plan_with_keys_signs_and_checks_every_package(planned):
    for name in ("private.pem", "public.pem"):
        Path(name).write_text("a key")
    stages = arguments(planned(gate={"registry": "fleet", "key": "private.pem", "trusted": "public.pem"}))
    assert all("--key=private.pem" in stages[name] for name in ("export-start", "round-01/export"))
    assert all("--trusted=public.pem" in stages[f"round-01/{name}"] for name in ("gate", "published"))
    with pytest.raises(ConfigError, match=r"gate\.key signs and gate\.trusted checks"):
        read_rounds(planned(gate={"key": "private.pem"}))


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_config_that_is_no_yaml_is_named(started, planned, capsys, command):
    path = planned()
    run_plan(path)
    Path("adapt.yaml").write_text("a: [1\n b: }")
    capsys.readouterr()
    assert main(["cycle", command, f"--plan={path}"]) == 1
    told = capsys.readouterr().err
    assert "adapt.yaml is not readable YAML" in told and "same command" in told


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"rounds": []}, "exactly one of rounds and watch is required"),
        ({"watch": {"frames": "x"}}, "exactly one of rounds and watch is required"),
        ({"drift": {"when": "never"}}, "drift.when: never is not a known value. Allowed: drifted, always"),
        ({"rounds": [{"name": "new", "train": ["night.json"]}]}, r"rounds\[0\].name"),
        ({"rounds": [{"name": "a"}]}, "exactly one of train and frames is required"),
        ({"replay": {"share": 2}}, "replay.share must lie in 0..1"),
        ({"gate": {"canary": ["gone.json"]}}, r"gate.canary\[0\]: gone.json does not exist"),
        ({"budget": 0}, "budget must be greater than or equal to 1, got 0"),
        ({"drift": {"window": 8, "block": 4}}, "drift.window must be at least three drift.block, got 8 and 4"),
        ({"drift": {"alpha": -1}}, "drift.alpha must be between 0 and 1, got -1"),
        ({"drift": {"alpha": 0.001}}, "drift.permutations must be 3999 or more for drift.alpha 0.001, got 499"),
        ({"drift": {"margin": float("nan")}}, "drift.margin must be 0 or more, got nan"),
        ({"drift": {"confirm": 0}}, "drift.confirm must be 1 or more, got 0"),
        ({"gate": {"max_ap50_drop": -3}}, "gate.max_ap50_drop must lie in 0..1, got -3"),
        ({"gate": {"max_slowdown": -1}}, "gate.max_slowdown must be a number above 0, got -1"),
        ({"gate": {"max_slowdown": float("inf")}}, "gate.max_slowdown must be a number above 0, got inf"),
    ],
)
def test_problems_of_a_plan_are_told_together(planned, more, said):
    path = planned(**more)
    with pytest.raises(ConfigError, match=said):
        read_rounds(path)


def test_a_dry_run_tells_no_password(planned, capsys, monkeypatch):
    monkeypatch.setattr("cahqp.cycle.run.check_plan", lambda path, plan: None)  # the models are stand-ins
    planned(rounds=[{"name": "night", "frames": "ftp://user:secret@depot/night?token=hidden"}])
    assert main(["cycle", "run", "--plan=rounds.yaml", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "--frames=ftp://depot/night " in told
    assert "secret" not in told and "hidden" not in told
