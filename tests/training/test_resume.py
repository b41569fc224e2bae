"""Killed at any moment and started again, a training ends as if nothing had happened."""

import os
import signal
from pathlib import Path

import pytest
import torch

from cahqp.__main__ import main
from cahqp.files import atomic_write
from cahqp.training import base, save_model
from cahqp.training.base import DetectionModule
from cahqp.training.callbacks.checkpoints import AtomicCheckpointIO

SCORES = [0.2, 0.6, 0.4]  # the second of three epochs is the best


@pytest.fixture(scope="module", autouse=True)
def scores():
    """Score each epoch as `SCORES` says: what is so small learns nothing that average precision could tell apart."""

    def log(module, prefix):
        module.metric.reset()
        module.log(f"{prefix}/ap50", SCORES[module.current_epoch])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base.DetectionModule, "_log_metric", log)
        yield


@pytest.fixture(scope="module")
def command(arguments, teacher, student):
    weights = {"adapt": [f"--model.weights={teacher}"], "retrain": [f"--model.weights={student}"]}
    return lambda kind, output: [*arguments(kind), *weights.get(kind, []), f"--output={output}"]


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    """Run directories of trainings that nothing stopped, each made when first asked for."""
    root = tmp_path_factory.mktemp("uninterrupted")

    def build(kind):
        if not (root / kind).exists():
            assert main(command(kind, root / kind)) == 0
        return root / kind

    return build


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(number):
    """Kill in the middle of a training step."""
    plain = DetectionModule.detection_loss

    def step(module, output, batch, prefix="train"):
        if module.global_step == number:
            die()
        return plain(module, output, batch, prefix)

    DetectionModule.detection_loss = step


def at_validation(epoch):
    """Kill when the average lies in the model's place."""
    plain = DetectionModule.validation_step

    def step(module, batch, index):
        if module.current_epoch == epoch:
            die()
        return plain(module, batch, index)

    DetectionModule.validation_step = step


def in_checkpoint(name, number):
    """Kill when half of a checkpoint is on the disk."""
    plain, seen = AtomicCheckpointIO.save_checkpoint, []

    def save(self, checkpoint, path, storage_options=None):
        seen.append(Path(path).stem)
        if seen.count(name) == number and seen[-1] == name:
            with atomic_write(path, "wb") as file:
                file.write(b"half of it")
                file.flush()
                die()
        plain(self, checkpoint, path)

    AtomicCheckpointIO.save_checkpoint = save


def before_model_file():
    save_model.model_file.save = lambda *_: die()


MOMENTS = {
    "first epoch": lambda: at_step(1),
    "middle of an epoch": lambda: at_step(4),
    "after the best epoch": lambda: at_step(7),
    "validation": lambda: at_validation(1),
    "writing the best": lambda: in_checkpoint("best", 2),
    "writing the last": lambda: in_checkpoint("last", 2),
    "after the last epoch": before_model_file,
}


# Paths, and the score of the last epoch that was saved, which nothing reads.
LEFT_OUT = {"dirpath", "best_model_path", "last_model_path", "kth_best_model_path", "best_k_models", "current_score"}


def same(one, other, path=""):
    """Compare what is in two checkpoints."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            if key not in LEFT_OUT:
                same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            same(left, right, f"{path}.{number}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other, path


def check(done, expected):
    for name in ("model.safetensors", "metrics.csv", "manifest.json"):
        assert (done / name).read_bytes() == (expected / name).read_bytes(), name
    for name in ("best.ckpt", "last.ckpt"):
        left, right = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (done, expected))
        same(left, right)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_training_ends_like_one_that_nothing_stopped(moment, command, killed, uninterrupted, tmp_path):
    given = command("fit", tmp_path / "run")
    assert killed(given, MOMENTS[moment]) == -signal.SIGKILL
    assert main(given) == 0
    check(tmp_path / "run", uninterrupted("fit"))


@pytest.mark.parametrize("kind", ["adapt", "student", "retrain"])
def test_every_kind_of_training_goes_on(kind, command, killed, uninterrupted, tmp_path):
    given = command(kind, tmp_path / "run")
    # After the last step nothing is left to train, and where that step is selected the average is still to be saved.
    for moment in (lambda: at_step(4), lambda: at_step(7), before_model_file):
        assert killed(given, moment) == -signal.SIGKILL
    assert main(given) == 0
    check(tmp_path / "run", uninterrupted(kind))


def test_dropout_goes_on_too(command, killed, tmp_path):
    given = [*command("fit", tmp_path / "run")[:-1], "--model.detector.init_args.dropout=0.3"]
    assert main([*given, f"--output={tmp_path / 'whole'}"]) == 0
    assert killed([*given, f"--output={tmp_path / 'run'}"], lambda: at_step(4)) == -signal.SIGKILL
    assert main([*given, f"--output={tmp_path / 'run'}"]) == 0
    check(tmp_path / "run", tmp_path / "whole")


def test_the_best_epoch_is_what_is_kept(uninterrupted):
    best = torch.load(uninterrupted("fit") / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 1
