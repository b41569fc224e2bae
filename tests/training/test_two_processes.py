"""Two processes train and label as one does."""

import json

import pytest
from safetensors.torch import load_file

from cahqp.__main__ import main
from cahqp.data.samplers import Order
from cahqp.training.base import DetectionModule


@pytest.fixture(scope="module")
def sparse(recordings, tmp_path_factory):
    """The day with boxes on three of its six frames: some steps have none, some have them on one rank alone."""
    document = json.loads(recordings["day"].read_text())
    with_boxes = {1, 3, 4}
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in with_boxes]
    path = tmp_path_factory.mktemp("sparse") / "annotations.json"
    (path.parent / "images").symlink_to(recordings["day"].parent / "images")
    path.write_text(json.dumps(document))
    return path, with_boxes


@pytest.fixture(scope="module")
def odd(recordings, tmp_path_factory):
    """Three validation frames: two for one process, one for the other."""
    document = json.loads(recordings["val"].read_text())
    document["images"] = document["images"][:3]
    kept = {image["id"] for image in document["images"]}
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
    path = tmp_path_factory.mktemp("odd") / "annotations.json"
    (path.parent / "images").symlink_to(recordings["val"].parent / "images")
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def given(arguments, sparse, odd, teacher, student):
    roles = {"fit": "train", "adapt": "source", "retrain": "source"}
    weights = {"fit": [], "adapt": [f"--model.weights={teacher}"], "retrain": [f"--model.weights={student}"]}
    short = ["--trainer.max_epochs=2", "--model.optimizer.learning_rate=1e-4"]
    data = {kind: {role: [str(sparse[0])], "val": [str(odd)]} for kind, role in roles.items()}
    return lambda kind: [*arguments(kind, **data[kind]), *weights[kind], *short]


TWO = ["--data.batch_size=1", "--trainer.devices=2", "--trainer.strategy=ddp"]


def test_the_steps_are_what_these_tests_need(sparse):
    orders = [Order(6, 1, batches=3, rank=rank, world_size=2) for rank in (0, 1)]
    ranks = [[key[1] + 1 for start in (0, 3) for (key,) in order.batches(start)] for order in orders]
    counts = [sum(frame in sparse[1] for frame in step) for step in zip(*ranks, strict=True)]
    assert set(counts) == {0, 1, 2}


def test_a_training_agrees_with_one_process(given, two_processes, tmp_path):
    assert two_processes([*given("fit"), *TWO, f"--output={tmp_path / 'two'}"]) == [0, 0]
    assert main([*given("fit"), "--trainer.devices=1", f"--output={tmp_path / 'one'}"]) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max((one[name].float() - two[name].float()).abs().max().item() for name in one) < 1e-4


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_ranks_without_boxes_do_not_hang(given, two_processes, tmp_path, checkpointing):
    more = [f"--model.activation_checkpointing={checkpointing}", f"--output={tmp_path / 'two'}", "--alarms.window=2"]
    assert two_processes([*given("adapt"), *TWO, *more]) == [0, 0]


def test_predictions_that_one_rank_alone_has_wrong_stop_both(given, two_processes, tmp_path, monkeypatch):
    detect = DetectionModule.detect

    def broken(self, batch, targets=None):
        output = detect(self, batch, targets)
        if targets is not None and self.global_step == 1 and self.global_rank == 1:
            output.pred_logits = output.pred_logits * float("nan")
        return output

    monkeypatch.setattr(DetectionModule, "detect", broken)
    assert two_processes([*given("adapt"), *TWO, f"--output={tmp_path / 'two'}"], seconds=60) == [1, 1]
    kept = {path.name for path in (tmp_path / "two.partial" / "checkpoints" / "alarm").iterdir()}
    assert {"last_good.safetensors", "failing-rank1.pt"} <= kept


@pytest.mark.slow
def test_the_command_starts_its_second_process_itself(given, cahqp, tmp_path):
    ended = cahqp(*given("retrain"), *TWO, "--data.batch_size=2", f"--output={tmp_path / 'two'}", timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "two" / "model.safetensors").is_file()


@pytest.mark.slow
def test_labels_agree_with_one_process_to_the_byte(teacher, recordings, cahqp, tmp_path):
    given = ["relabel", f"--weights={teacher}", "--frames", str(recordings["night"]), "--threshold=0.06"]
    given += ["--accelerator=cpu", "--batch-size=1"]
    ended = cahqp(*given, "--devices=2", f"--output={tmp_path / 'two'}", timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert main([*given, f"--output={tmp_path / 'one'}"]) == 0
    for name in ("labels.json", "rejected.json", "manifest.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
