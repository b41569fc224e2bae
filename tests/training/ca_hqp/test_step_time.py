"""Time of an adaptation step with all terms of CA-HQP beside the plain mean teacher; `pytest -m long -rP` prints it."""

import time
from pathlib import Path
from statistics import median

import pytest

from cahqp.__main__ import main
from cahqp.training.ca_hqp.module import TeacherAdaptation

ROOT = Path(__file__).parents[3]
ROUNDS, STEPS, WARM_UP = 4, 12, 2
MAX_RATIO = 1.3


@pytest.mark.long
def test_all_terms_cost_at_most_three_tenths_of_a_step(tmp_path, monkeypatch):
    """The demo's adaptation, alternating; processor time, so that other programs hardly disturb it."""
    for name, hour, number in (("day", "[12, 13]", 0), ("val", "[12, 13]", 20), ("night", "[21, 22]", 50)):
        given = [f"--output={tmp_path / name}", "--recordings=4", "--frames=12", f"--hour={hour}"]
        assert main(["scenes", *given, f"--first-recording={number}"]) == 0
    steps = timed(monkeypatch)
    ratios = []
    for number in range(ROUNDS):
        medians = {}
        for overlay in ("mean_teacher", "ca_hqp"):
            steps.clear()
            assert main(adaptation(tmp_path, overlay, tmp_path / f"{overlay}{number}")) == 0
            medians[overlay] = median(steps[WARM_UP:])
        ratios.append(medians["ca_hqp"] / medians["mean_teacher"])
        print(f"round {number}: {medians['mean_teacher']:.2f} s plain, {medians['ca_hqp']:.2f} s with all terms")
    print(f"ratio: median {median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    assert median(ratios) <= MAX_RATIO


def timed(monkeypatch):
    """Return a list that receives the seconds from the start of each training batch to its end."""
    seconds, began = [], []
    start, end = TeacherAdaptation.on_train_batch_start, TeacherAdaptation.on_train_batch_end

    def on_start(self, *args):
        began[:] = [time.process_time()]
        return start(self, *args)

    def on_end(self, *args):
        end(self, *args)
        seconds.append(time.process_time() - began[0])

    monkeypatch.setattr(TeacherAdaptation, "on_train_batch_start", on_start)
    monkeypatch.setattr(TeacherAdaptation, "on_train_batch_end", on_end)
    return seconds


def adaptation(root, overlay, output):
    frames = {"source": "day", "val": "val", "target": "night"}
    return [
        "fit",
        f"--config={ROOT / 'configs/teacher/demo_adapt.yaml'}",
        f"--config={ROOT / f'configs/overlays/{overlay}.yaml'}",
        f"--model.weights={ROOT / 'weights/demo-teacher.safetensors'}",
        *(f'--data.{key}=["{root / name / "annotations.json"}"]' for key, name in frames.items()),
        f"--data.batches_per_epoch={STEPS}",
        "--data.curriculum=null",
        "--data.workers=0",
        "--trainer.max_epochs=1",
        "--trainer.limit_val_batches=1",
        f"--output={output}",
        "--seed=0",
    ]
