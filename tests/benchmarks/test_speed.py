"""`cahqp benchmark speed`: what it measures and in which order; never how fast that is."""

import json
from itertools import pairwise

import pytest
import torch

from cahqp.__main__ import main
from cahqp.benchmarks.speed import command as speed
from cahqp.benchmarks.speed.reference import build_reference
from cahqp.benchmarks.speed.timer import Times, Workload, alternate, peak
from cahqp.detectors import RTDETR

CPU = torch.device("cpu")
SIZES = ["--batch-size=1", "--boxes=2", "--rounds=2", "--threads=1"]


@pytest.fixture(scope="module")
def measured(configs, tmp_path_factory):
    output = tmp_path_factory.mktemp("speed")
    given = [f"--fit-config={configs['student']}", f"--output={output}", "--no-memory", *SIZES]
    assert main(["benchmark", "speed", *given]) == 0
    return output


def test_every_phase_is_measured_ours_beside_theirs(measured):
    found = json.loads((measured / "speed.json").read_text())
    phases = found["phases"]
    assert set(phases) == {"training step", "inference", "relabelling", "criterion", "matching and denoising"}
    beside = {name for name, phase in phases.items() if "transformers" in phase["ways"]}
    assert beside == {"training step", "inference", "criterion"}
    assert "parameters as ours" in found["reference"] and found["machine"]["threads"] == 1
    assert 0 < found["share_of_matching_and_denoising"] < 1


def test_ratios_are_of_runs_by_turns(measured):
    for phase in json.loads((measured / "speed.json").read_text())["phases"].values():
        assert len(phase["order"]) == 2 * len(phase["ways"])
        if len(phase["ways"]) == 2:
            assert all(a != b for a, b in pairwise(phase["order"]))
            ours, theirs = (phase["ways"][way]["seconds"] for way in ("cahqp", "transformers"))
            ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
            assert (phase["ratio"]["min"], phase["ratio"]["max"]) == (ratios[0], ratios[1])


def test_the_table_says_the_same(measured):
    text = (measured / "speed.md").read_text()
    assert "| training step |" in text and "Matching and denoising take" in text


def test_a_teacher_has_no_reference_and_says_why(configs, capsys):
    given = [f"--fit-config={configs['fit']}", "--no-memory", *SIZES]
    assert main(["benchmark", "speed", *given]) == 0
    assert "this is a DINO" in capsys.readouterr().out


def test_a_model_of_transformers_is_measured_too(capsys):
    given = ["--fit-config=configs/student/huggingface.yaml", "--no-memory", *SIZES]
    assert main(["benchmark", "speed", *given]) == 0
    assert "this is a HuggingFaceDetector" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_is_of_a_process_of_its_own(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "WITH_MEMORY", ("inference",))
    given = [f"--fit-config={configs['student']}", f"--output={tmp_path}", "--no-reference", *SIZES]
    assert main(["benchmark", "speed", *given, "--rounds=1"]) == 0
    phases = json.loads((tmp_path / "speed.json").read_text())["phases"]
    assert phases["inference"]["ways"]["cahqp"]["peak_bytes"] > 0


def test_a_peak_is_what_a_run_takes_at_its_highest():
    took = peak(lambda: torch.ones(64 << 20, dtype=torch.uint8), CPU)
    assert 60 << 20 < took < 80 << 20


def test_a_workload_runs_once_before_timing():
    done = []
    workloads = {
        name: Workload(lambda name=name: done.append(name), lambda name=name: done.append(f"for {name}"))
        for name in "ab"
    }
    times = alternate(workloads, 2, CPU)
    assert done == ["for a", "a", "for b", "b"] * 3
    assert times.order == ["a", "b", "a", "b"] and [len(s) for s in times.seconds.values()] == [2, 2]


def test_a_ratio_is_taken_round_by_round():
    times = Times({"a": [1.0, 2.0, 4.0], "b": [3.0, 2.0, 2.0]}, [])
    assert times.ratio("b", "a") == {"min": 0.5, "median": 1.0, "max": 3.0}


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "resnet50vd", "backbone_width": 8, "encoder_dim": 48, "encoder_ffn_dim": 40},
        {
            "backbone": "resnet10t",
            "backbone_options": {"channels": (8, 16, 16, 32), "stem_width": 8},
            "fusion_blocks": 1,
        },
        {"backbone_width": 8, "expansion": 1.0, "denoising": 0},
    ],
)
def test_the_reference_is_of_the_same_size(settings):
    detector = RTDETR(["a", "b", "c"], dim=32, heads=4, ffn_dim=32, decoder_layers=2, queries=10, **settings)
    model, about = build_reference(detector)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in detector.parameters()), about
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert model.eval()(images).logits.shape == detector.eval()(images).pred_logits.shape


def test_what_theirs_cannot_be_is_told():
    detector = RTDETR(["a"], dim=32, heads=4, ffn_dim=32, backbone_width=8, points=[1, 2, 3], fusion_blocks=4)
    assert build_reference(detector) == (
        None,
        "transformers' RT-DETR does not support this detector's points, fusion_blocks",
    )


@pytest.mark.parametrize(
    ("flag", "told"), [("--rounds=0", "--rounds"), ("--fit-config=none.yaml", "none.yaml does not exist")]
)
def test_wrong_arguments_are_told(configs, flag, told, capsys):
    given = ["benchmark", "speed", f"--fit-config={configs['student']}", flag]
    assert main(given) == 1
    assert told in capsys.readouterr().err
