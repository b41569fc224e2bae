import json

from cahqp.__main__ import main
from cahqp.benchmarks.speed.attention import Sizes


def test_what_runs_here_is_measured_and_what_does_not_is_told(tmp_path, capsys):
    given = ["--device=cpu", "--size=[64,96]", "--queries=5", "--rounds=2", f"--output={tmp_path}"]
    assert main(["benchmark", "attention", *given]) == 0
    found = json.loads((tmp_path / "attention.json").read_text())
    assert found["triton"] == "not measured: no GPU" and "not measured: no GPU" in capsys.readouterr().out
    for room in ("encoder", "decoder"):
        compared = found["rooms"][room]["types"]["float32"]
        assert compared["order"] == ["grid_sample", "gather"] * 2
        assert all(max(one["errors"].values()) < 1e-5 and one["bytes"] > 0 for one in compared["forms"].values())
        assert compared["forms"]["grid_sample"]["times_as_fast"] == {"min": 1.0, "median": 1.0, "max": 1.0}


def test_the_sizes_are_dinos():
    sizes = Sizes(2, 800, 1333)
    assert sizes.shapes == [(100, 167), (50, 84), (25, 42), (13, 21)]
    assert sum(h * w for h, w in sizes.shapes) == 22223


def test_a_gpu_that_is_not_there_is_told(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["benchmark", "attention", "--device=cuda"]) == 1
    assert "there is no GPU here" in capsys.readouterr().err
