import json
import os
import signal

import pytest
import torch
import yaml

from cahqp.__main__ import main
from cahqp.data.frames import open_frames
from cahqp.detectors.base import AlignmentFeatures, Output
from cahqp.detectors.model_file import load, save
from cahqp.errors import ConfigError
from cahqp.relabelling.options import SoftStoreSettings
from cahqp.relabelling.soft_labels import SoftTeacher, store_key
from cahqp.training.distillation.data import DistillationData
from cahqp.training.distillation.loss import DistillationCriterion, DistillationSettings, SoftTargets, best_queries
from cahqp.training.distillation.records import SoftView
from cahqp.training.distillation.store import SoftLabelStore, SoftLabelWriter
from cahqp.training.distillation.views import view_seed
from cahqp.training.student import StudentTraining


def output_of(logits, boxes):
    """Return predictions of one decoder layer, the encoder's being the same."""
    empty = boxes.new_zeros(0)
    none = (logits[None, :0].new_zeros(0, *logits.shape), boxes.new_zeros(0, *boxes.shape))
    features = AlignmentFeatures([], [], [], [], empty)
    return Output(logits, boxes, *none, logits, boxes, boxes.new_full((len(boxes), 2), 64.0), features)


def soft_targets(queries=4, classes=3):
    boxes = torch.rand(2, queries, 4, generator=torch.Generator().manual_seed(1)) * 0.3 + 0.2
    probs = torch.full((2, queries, classes), 0.01)
    probs[:, 0, 1], probs[:, 1, 2] = 0.9, 0.4
    return SoftTargets(probs, boxes)


def losses(logits, boxes, soft, **settings):
    return DistillationCriterion(DistillationSettings(**settings))(output_of(logits, boxes), soft)


def test_a_student_that_says_the_same_has_no_loss_whatever_the_order():
    soft, order = soft_targets(), torch.tensor([2, 0, 3, 1])
    logits = (soft.probs * (soft.probs.amax(-1, keepdim=True) >= 0.05)).clamp(min=1e-6).logit()
    found = losses(logits[:, order], soft.boxes[:, order], soft)
    assert all(value.max() < 1e-5 for value in found.values())


def test_an_object_counts_with_its_surest_probability():
    soft = soft_targets()
    logits = soft.probs.logit()
    shifted = soft.boxes.clone()
    shifted[:, 0, 0] += 0.1
    sure = losses(logits, shifted, soft)["soft_bbox"]
    shifted[:, 0, 0] -= 0.1
    shifted[:, 1, 0] += 0.1
    unsure = losses(logits, shifted, soft)["soft_bbox"]
    assert torch.allclose(sure / unsure, torch.tensor(0.9 / 0.4))


def test_below_the_floor_the_student_is_to_say_nothing():
    soft = soft_targets()
    speaking, silent = torch.full((2, 4, 3), 0.0), torch.full((2, 4, 3), -9.0)
    assert losses(speaking, soft.boxes, soft, floor=0.95)["soft_class"].sum() > 1
    assert losses(silent, soft.boxes, soft, floor=0.95)["soft_class"].sum() < 1e-6
    assert losses(speaking, soft.boxes, soft, floor=0.95)["soft_giou"].sum() == 0


def test_the_class_loss_is_quality_focal_loss():
    soft = SoftTargets(torch.tensor([[[0.7, 0.2]]]), torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]))
    z = torch.tensor([[[0.3, -1.0]]])
    p, q = z.sigmoid(), soft.probs
    expected = ((p - q).abs() ** 2 * -(q * p.log() + (1 - q) * (1 - p).log())).sum() * 2 / 1.0
    assert torch.allclose(losses(z, soft.boxes, soft)["soft_class"], expected.expand(2), atol=1e-6)


def test_a_teacher_with_more_queries_gives_its_surest():
    soft = soft_targets(queries=6)
    assert torch.equal(best_queries(soft, 2).boxes, soft.boxes[:, :2])
    assert torch.isfinite(losses(torch.zeros(2, 3, 3), soft.boxes[:, :3], soft)["soft_class"]).all()


def test_nothing_seen_is_a_lesson_too():
    soft = SoftTargets(torch.zeros(2, 4, 3), torch.zeros(2, 4, 4))
    logits = torch.zeros(2, 4, 3, requires_grad=True)
    found = losses(logits, torch.rand(2, 4, 4), soft)
    torch.stack([value.sum() for value in found.values()]).sum().backward()
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"floor": 1.0}, {"gamma": float("nan")}])
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DistillationSettings(**wrong)


# The whole way, through the front door


@pytest.fixture(scope="module")
def store(teacher, recordings, tmp_path_factory):
    """A sparse store of the night, two views a frame, as `cahqp relabel --soft` writes it."""
    output = tmp_path_factory.mktemp("soft") / "run"
    assert main(relabel(teacher, recordings["night"], output)) == 0
    return output / "soft"


def relabel(teacher, frames, output, *more):
    given = ["relabel", "--soft", f"--weights={teacher}", f"--frames={frames}", f"--output={output}", *more]
    return [*given, "--soft_store.views=2", "--soft_store.queries=10", "--accelerator=cpu", "--batch-size=4"]


@pytest.fixture
def distil(configs, recordings, student, tmp_path):
    """Return the command line of a distillation into `tmp_path / NAME`."""
    config = yaml.safe_load(configs["retrain"].read_text())
    config["data"]["class_path"] = "DistillationData"
    config["data"]["init_args"] = {"batch_size": 4, "batches_per_epoch": 3, "val": [str(recordings["val"])]}
    config["trainer"]["max_epochs"] = 1
    (tmp_path / "distil.yaml").write_text(yaml.safe_dump(config))

    def build(name, *given):
        fixed = ["fit", f"--config={tmp_path / 'distil.yaml'}", f"--output={tmp_path / name}"]
        return [*fixed, f"--model.weights={student}", *given]

    return build


def source(recordings):
    return f"--data.source={json.dumps([str(recordings['day'])])}"


def test_relabel_writes_a_store_beside_the_labels(store, teacher):
    found = SoftLabelStore(store)
    assert (store.parent / "labels.json").is_file()
    assert len(found) == 6
    assert found.key.teacher == load(teacher).provenance["hash"]
    assert len({found.read(frame, view).seed for frame in range(6) for view in (0, 1)}) == 12
    assert found.read(0, 0).probs.shape == (10, 5)


def test_killed_while_it_asks_it_goes_on_to_the_same_bytes(store, teacher, recordings, tmp_path, killed, contents):
    def prepare():
        asked, calls = SoftTeacher.predict_step, []

        def once(self, batch, batch_idx):
            if calls:
                os.kill(os.getpid(), signal.SIGKILL)
            calls.append(batch_idx)
            asked(self, batch, batch_idx)

        SoftTeacher.predict_step = once

    command = relabel(teacher, recordings["night"], tmp_path / "run")
    assert killed(command, prepare) == -signal.SIGKILL
    assert not (tmp_path / "run").exists()
    assert main(command) == 0
    assert contents(tmp_path / "run" / "soft") == contents(store)


def test_a_student_learns_from_the_store_and_the_source(distil, store, recordings, teacher, tmp_path):
    given = [f"--data.store={store}", source(recordings), f"--model.teacher={teacher}"]
    assert main(distil("run", *given)) == 0
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/soft_class", "train/soft_giou", "train/giou", "train/dn_class"} <= set(header)


def test_a_student_learns_from_the_teacher_itself(distil, recordings, teacher, tmp_path):
    given = [f"--data.frames={json.dumps([str(recordings['night'])])}", f"--model.teacher={teacher}"]
    assert main(distil("run", *given)) == 0
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in saved} == {"detector"}  # the teacher is neither trained nor saved


@pytest.mark.parametrize("online", [True, False])
def test_a_loss_that_is_not_finite_is_replayed(
    online, distil, store, recordings, teacher, tmp_path, monkeypatch, capsys
):
    def spoilt(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        told.append((float(loss), [frame.name for frame in batch.batch.frames]))
        return loss * float("nan") if len(told) == 2 else loss

    told, original = [], StudentTraining.training_step
    monkeypatch.setattr(StudentTraining, "training_step", spoilt)
    frames = f"--data.frames={json.dumps([str(recordings['night'])])}" if online else f"--data.store={store}"
    given = [frames, source(recordings), f"--model.teacher={teacher}"]
    assert main(distil("run", *given)) == 1
    assert "loss of step 1 is not finite" in capsys.readouterr().err
    failing = tmp_path / "run.partial" / "checkpoints" / "alarm" / "failing-rank0.pt"
    assert main(distil("replay", *given, f"--alarms.replay={failing}")) == 1
    assert told[2][1] == told[1][1] != told[0][1]
    assert told[2][0] == pytest.approx(told[1][0])


def test_a_store_of_another_teacher_is_refused(distil, store, teacher, tmp_path, capsys):
    other = load(teacher)
    with torch.no_grad():
        other.class_heads[0].bias += 1e-3
    save(tmp_path / "other.safetensors", other)
    assert main(distil("run", f"--data.store={store}", f"--model.teacher={tmp_path / 'other.safetensors'}")) == 1
    assert "contains soft labels of teacher" in capsys.readouterr().err


def test_without_store_and_teacher_it_says_what_is_missing(distil, recordings, capsys):
    assert main(distil("a", f"--data.frames={json.dumps([str(recordings['night'])])}")) == 1
    assert "--model.teacher" in capsys.readouterr().err
    assert main(distil("b")) == 1
    assert "data.store" in capsys.readouterr().err


def test_a_frame_that_changed_is_refused(store, recordings, monkeypatch):
    module = StudentTraining(detector=load_student_of(store))
    data = offline(module, store, recordings)
    quarantine = data._training[-1].quarantine
    read = quarantine._read
    monkeypatch.setattr(quarantine, "_read", lambda position: read(position)[:50])
    with pytest.raises(Exception, match="do not give the view in the store"):
        data._training[-1][(0, 0)]


# Twenty steps of both, side by side


class Trainer:
    """As much of one as data modules ask for."""

    def __init__(self):
        self.global_rank, self.world_size = 0, 1
        position = type("P", (), {"total": type("T", (), {"processed": 0})})
        self.fit_loop = type("F", (), {"epoch_loop": type("E", (), {"batch_progress": position})})


def load_student_of(store):
    from cahqp.detectors import RTDETR

    torch.manual_seed(0)
    return RTDETR(
        list(SoftLabelStore(store).key.classes), backbone_width=8, dim=32, heads=4, points=2, ffn_dim=32, queries=20,
        fusion_blocks=1, decoder_layers=1, size=(64, 96), denoising=10,
    )  # fmt: skip


def offline(module, store, recordings, **given):
    return prepared(module, store=store, source=[recordings["day"]], **given)


def prepared(module, **given):
    detector = module.detector
    links = {"classes": detector.classes, "preprocessing": detector.preprocessing, "teacher": module.teacher}
    data = DistillationData(val=[], batch_size=4, batches_per_epoch=20, views=2, seed=3, **links | given)
    data.trainer = Trainer()
    data.setup("fit")
    return data


def twenty_steps(module, data):
    module.train()
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-3)
    for batch in data.train_dataloader():
        optimizer.zero_grad()
        torch.stack([value.sum() for value in module.soft_losses(batch).values()]).sum().backward()
        optimizer.step()
    return module.detector.state_dict()


def whole_store(folder, teacher, module, data, frames):
    """Fill a store with all that the teacher says, asked in the very batches of the online run."""
    key = store_key(load(teacher), SoftStoreSettings(views=2, queries=None, classes=None, precision="float32"), seed=3)
    writer = SoftLabelWriter(
        folder, key, os.path.relpath(frames.parent / "images", folder), open_frames([frames]).frames
    )
    names = [frame.name for frame in open_frames([frames]).frames]
    for batch in data.train_dataloader():
        soft = module.ask_teacher(batch)
        for row, frame in enumerate(batch.batch.frames[-batch.views :]):
            number = next(
                v for v in (0, 1) if view_seed(3, frame.name, v) == batch.batch.targets[row - batch.views].seed
            )
            view = SoftView(
                frame.view, view_seed(3, frame.name, number), soft.probs[row].numpy(), soft.boxes[row].numpy()
            )
            writer.write(names.index(frame.name), number, view)
    writer.finish()
    return folder


def test_offline_equals_online_after_twenty_steps(teacher, store, recordings, tmp_path):
    asking = StudentTraining(detector=load_student_of(store), teacher=teacher)
    frames = {"frames": [recordings["night"]], "source": [recordings["day"]]}
    whole = whole_store(tmp_path / "whole", teacher, asking, prepared(asking, **frames), recordings["night"])
    online = twenty_steps(asking, prepared(asking, **frames))
    reading = StudentTraining(detector=load_student_of(store), teacher=teacher)
    found = twenty_steps(reading, offline(reading, whole, recordings))
    assert not reading._loaded_teacher
    difference = max((online[name] - found[name]).abs().max().item() for name in online)
    assert difference <= 1e-6
    sparse = StudentTraining(detector=load_student_of(store))
    other = twenty_steps(sparse, offline(sparse, store, recordings))
    assert max((online[name] - other[name]).abs().max().item() for name in online) > 1e-4


def test_classes_of_another_order_are_refused(store, recordings):
    module = StudentTraining(detector=load_student_of(store))
    with pytest.raises(ConfigError, match="in their order"):
        prepared(module, store=store, classes=["person", "car", "bus", "truck", "motorcycle"])
