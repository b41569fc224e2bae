from pathlib import Path

import pytest

from cahqp.__main__ import main
from cahqp.cycle import run as cycle
from cahqp.cycle.rounds.plan import read_rounds
from cahqp.cycle.rounds.run import choose
from cahqp.errors import ConfigError


def arguments(path):
    return {stage.name: " ".join(stage.arguments) for stage in choose(path, None, None).stages}


def test_a_gate_of_int8_packages_has_frames_to_measure_them_on(started, planned):
    stages = arguments(planned(gate={"precision": "int8"}))
    assert "--labelled val.json" in stages["export-start"] and "--calibration" in stages["export-start"]


def test_the_gate_judges_what_int8_loses_and_no_candidate_stops_the_plan(planned):
    stages = arguments(planned(gate={"precision": "int8"}))
    assert "--max_loss=1" in stages["round-01/export"].split()
    assert "--max_loss" not in stages["export-start"]  # nothing runs yet that could be kept
    assert "--max_loss" not in arguments(planned())["round-01/export"]


def test_a_registry_taken_out_of_the_plan_repeats_no_training(started, planned):
    cycle.run(planned(gate={"registry": "fleet"}))
    started.clear()
    cycle.run(planned())
    assert set(started) == {"published"}


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_config_that_is_no_yaml_is_named(started, planned, capsys, command):
    path = planned()
    cycle.run(path)
    Path("adapt.yaml").write_text("a: [1\n b: }")
    capsys.readouterr()
    assert main(["cycle", command, f"--plan={path}"]) == 1
    told = capsys.readouterr().err
    assert "adapt.yaml is not readable YAML" in told and "same command" in told


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"rounds": []}, "rounds or watch"),
        ({"watch": {"frames": "x"}}, "rounds or watch"),
        ({"drift": {"when": "never"}}, "drift.when must be drifted or always"),
        ({"rounds": [{"name": "new", "train": ["night.json"]}]}, r"rounds\[0\].name"),
        ({"rounds": [{"name": "a"}]}, "needs train or frames"),
        ({"replay": {"share": 2}}, "replay.share must be in 0..1"),
        ({"gate": {"canary": ["gone.json"]}}, "gate.canary: gone.json does not exist"),
        ({"budget": 0}, "budget must be 1 or more"),
        ({"drift": {"window": 8, "block": 4}}, "drift.window must be three drift.block or more, got 8 and 4"),
        ({"drift": {"alpha": -1}}, "drift.alpha must be between 0 and 1, got -1"),
        ({"drift": {"alpha": 0.001}}, "drift.alpha must be 0.008 or more with 499 permutations, got 0.001"),
        ({"drift": {"margin": float("nan")}}, "drift.margin must be 0 or more"),
        ({"drift": {"confirm": 0}}, "drift.confirm 1 or more, got 1.0 and 0"),
        ({"gate": {"max_ap50_drop": -3}}, "gate.max_ap50_drop must be in 0..1, got -3"),
        ({"gate": {"max_slowdown": -1}}, "gate.max_slowdown must be a number above 0, got -1"),
        ({"gate": {"max_slowdown": float("inf")}}, "gate.max_slowdown must be a number above 0, got inf"),
    ],
)
def test_problems_of_a_plan_are_told_together(planned, more, said):
    path = planned(**more)
    with pytest.raises(ConfigError, match=said):
        read_rounds(path)


def test_a_dry_run_tells_no_password(planned, capsys):
    planned(rounds=[{"name": "night", "frames": "ftp://user:secret@depot/night?token=hidden"}])
    assert main(["cycle", "run", "--plan=rounds.yaml", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "--frames=ftp://depot/night " in told
    assert "secret" not in told and "hidden" not in told
