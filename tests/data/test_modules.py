import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cahqp.data.modules import AdaptationData, LabelledData, StudentData
from cahqp.errors import ConfigError, DataError
from cahqp.structures import Batch, Preprocessing

CLASSES, RULE = ("person", "car"), Preprocessing(size=(16, 24))


class Recorder(LightningModule):
    """Notes which frames it sees, with the seeds of their augmentation."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []
        self.validated = []

    def training_step(self, batch):
        parts = batch.values() if isinstance(batch, dict) else [batch]
        self.seen.append([(f.name, t.seed) for part in parts for f, t in zip(part.frames, part.targets, strict=True)])
        return self.weight.sum()

    def validation_step(self, batch):
        self.validated += [frame.name for frame in batch.frames]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stop(RuntimeError):
    pass


class SaveThenStop(Callback):
    """Write a checkpoint at one moment, as `ModelCheckpoint` may at any of them, and break off."""

    def __init__(self, hook, step, path):
        self.hook, self.step, self.path = hook, step, path

    def _maybe(self, hook, trainer):
        if hook == self.hook and trainer.global_step == self.step and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)
            raise Stop

    def on_train_batch_end(self, trainer, *_):
        self._maybe("on_train_batch_end", trainer)

    def on_validation_end(self, trainer, *_):
        self._maybe("on_validation_end", trainer)

    def on_train_epoch_end(self, trainer, *_):
        self._maybe("on_train_epoch_end", trainer)


def fit(data, path, callbacks=(), ckpt_path=None, **kwargs):
    torch.set_num_threads(1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    model = Recorder()
    data.classes, data.preprocessing = CLASSES, RULE
    trainer = Trainer(
        max_epochs=3, default_root_dir=path, enable_checkpointing=False, callbacks=list(callbacks), **quiet, **kwargs
    )
    try:
        trainer.fit(model, data, ckpt_path=ckpt_path)
    except Stop:
        pass
    return model


@pytest.fixture
def labelled(write_coco):
    def make(**kwargs):
        settings = {"batch_size": 2, **kwargs}
        return LabelledData([write_coco("train", 9)], [write_coco("val", 3, "south", grey=120)], **settings)

    return make


def ready(data, stage="fit"):
    data.classes, data.preprocessing = CLASSES, RULE
    data.setup(stage)
    return data


def test_a_batch_holds_the_models_size_and_classes(labelled):
    batch = next(iter(ready(labelled(augmentation="none")).train_dataloader()))
    assert batch.images.shape == (2, 3, 16, 24)
    assert batch.targets[0].labels.tolist() == [1]
    assert batch.targets[0].boxes.tolist() == [[3.0, 4.0, 10.5, pytest.approx(28 / 3)]]


def test_given_classes_and_size_are_enough_to_train(labelled, tmp_path):
    assert len(fit(labelled(), tmp_path).seen) == 3 * 4


def test_without_a_model_classes_must_be_given(labelled):
    with pytest.raises(ConfigError, match=r"data\.classes is missing"):
        labelled(preprocessing=RULE).setup("fit")
    with pytest.raises(ConfigError, match=r"data\.preprocessing is missing"):
        labelled(classes=CLASSES).setup("fit")


def test_validation_sees_every_frame_once(labelled, tmp_path):
    names = fit(labelled(), tmp_path, num_sanity_val_steps=0).validated
    assert names[:3] == ["south/000.png", "south/001.png", "south/002.png"]
    assert len(names) == 9


MOMENTS = [
    ("on_train_batch_end", 3),
    ("on_train_batch_end", 8),
    ("on_validation_end", 6),
    ("on_validation_end", 8),
    ("on_train_epoch_end", 4),
]


@pytest.mark.parametrize(("hook", "step"), MOMENTS)
def test_resumed_equals_uninterrupted(labelled, tmp_path, hook, step):
    settings = {"val_check_interval": 0.5, "num_sanity_val_steps": 0}
    whole = fit(labelled(), tmp_path, **settings)
    checkpoint = tmp_path / "stopped.ckpt"
    first = fit(labelled(), tmp_path, [SaveThenStop(hook, step, checkpoint)], **settings)
    assert len(first.seen) == step
    second = fit(labelled(), tmp_path, ckpt_path=checkpoint, **settings)
    assert first.seen + second.seen == whole.seen


def test_resuming_in_an_epoch_with_another_batch_size_is_refused(labelled, tmp_path):
    checkpoint = tmp_path / "stopped.ckpt"
    fit(labelled(), tmp_path, [SaveThenStop("on_train_batch_end", 2, checkpoint)])
    with pytest.raises(ConfigError, match="frames per step was 2 and is 3"):
        fit(labelled(batch_size=3), tmp_path, ckpt_path=checkpoint)


def test_workers_change_nothing(labelled):
    def batches(workers):
        loader = ready(labelled(workers=workers)).train_dataloader()
        return [batch.images for _ in range(2) for batch in loader]

    assert all(torch.equal(a, b) for a, b in zip(batches(0), batches(2), strict=True))


class Place:
    """As much of a trainer as says which part of the data is wanted."""

    def __init__(self, rank, world_size):
        self.global_rank, self.world_size = rank, world_size
        self.fit_loop = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False).fit_loop


def test_two_devices_see_the_halves_of_what_one_sees(labelled):
    def names(batch_size, rank, world_size):
        data = ready(labelled(batch_size=batch_size))
        data.trainer = Place(rank, world_size)
        return [[(f.name, t.seed) for f, t in zip(b.frames, b.targets, strict=True)] for b in data.train_dataloader()]

    halves = [first + second for first, second in zip(names(2, 0, 2), names(2, 1, 2), strict=True)]
    assert halves == names(4, 0, 1)


def test_adaptation_pairs_views_of_the_same_geometry(write_coco):
    source, target, val = (write_coco(n, 4, n, grey=g) for n, g in (("a", 20), ("b", 90), ("c", 160)))
    data = ready(AdaptationData([source], [target], [val], batch_size=2, target_batch_size=3))
    batch = next(iter(data.train_dataloader()))
    assert [len(batch[part]) for part in ("source", "target_weak", "target_strong")] == [2, 3, 3]
    assert batch["target_weak"].frames == batch["target_strong"].frames
    assert not any(len(targets) for targets in batch["target_weak"].targets)


def test_targets_of_two_cameras_are_two_recordings(write_coco):
    data = AdaptationData([write_coco(name).parent / "images" for name in ("a", "b")], [], [])
    frames = ready(data).training_sets()[0].frames
    assert [frame.recording for frame in frames] == ["a/north"] * 4 + ["b/north"] * 4


def test_target_views_are_new_in_every_pass(write_coco):
    data = ready(AdaptationData([write_coco("b", 4, "b", grey=90)], [write_coco("a", grey=20)], [], batch_size=2))
    loader = data.train_dataloader()
    seeds = [targets.seed for _ in range(3) for batch in loader for targets in batch["target_weak"].targets]
    assert len(set(seeds)) == 12


def test_adaptation_never_reads_the_targets_labels(write_coco):
    def spoil(document):
        document["annotations"] = "not to be opened"

    target = write_coco("b", 4, "b", grey=90, change=spoil)
    data = AdaptationData([target], [write_coco("a", grey=20)], [], batch_size=2)
    assert next(iter(ready(data).train_dataloader()))["target_weak"].frames[0].recording == "b"


def test_source_frames_take_the_light_of_target_frames_and_keep_their_boxes(write_coco):
    source, target = write_coco("a", 4, "a", grey=20), write_coco("b", 4, "b", grey=160)

    def first(restyle):
        settings = {"batch_size": 4, "augmentation": "none", "restyle": restyle}
        return next(iter(ready(AdaptationData([target], [source], [], **settings)).train_dataloader()))["source"]

    plain, half, whole = first(0.0), first(0.5), first(1.0)
    light = [float(batch.images.float().mean()) for batch in (plain, half, whole)]
    assert light[0] < 40 < light[1] < 150 < light[2] < 175
    for one, other in zip(plain.targets, whole.targets, strict=True):
        assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(whole.images, first(1.0).images)


def test_curriculum_starts_with_the_brightest(write_coco):
    target = write_coco("b", 10, "b", grey=90)
    data = AdaptationData([target], [write_coco("a", grey=20)], [], batch_size=2, curriculum=[0.2, 1.0])
    loader = ready(data).train_dataloader()
    first, second = ({f.index for batch in loader for f in batch["target_weak"].frames} for _ in range(2))
    assert first == {8, 9}
    assert len(second) == 4


def test_curriculum_starts_with_what_the_teacher_is_surest_of(write_coco):
    given = {"batch_size": 2, "curriculum": [0.2, 1.0], "easiness": "confidence"}
    given["confidence"] = lambda batch: [float(frame.index in (3, 5)) for frame in batch.frames]
    data = AdaptationData([write_coco("b", 10, "b", grey=90)], [write_coco("a", grey=20)], [], **given)
    strategy = SimpleNamespace(root_device=torch.device("cpu"), broadcast=lambda found: found)
    data.trainer = SimpleNamespace(strategy=strategy)
    ready(data).trainer = None
    loader = data.train_dataloader()
    assert {f.index for batch in loader for f in batch["target_weak"].frames} == {3, 5}


def test_student_batches_mix_both_kinds_by_share(write_coco):
    def weigh(document):
        for annotation in document["annotations"]:
            annotation.update(score=0.9, weight=0.25)

    pseudo = write_coco("labels", 20, "night", grey=90, change=weigh)
    data = ready(StudentData([write_coco("a", 6, grey=20)], [pseudo], [], batch_size=4, pseudo_share=0.25))
    batches = list(data.train_dataloader())
    assert len(batches) == 20
    assert [f.recording for f in batches[0].frames] == ["north", "north", "north", "night"]
    assert [float(t.weights[0]) for t in batches[0].targets] == [1, 1, 1, 0.25]


def test_a_share_that_leaves_one_kind_out_is_refused(write_coco):
    data = StudentData([write_coco("a", grey=20)], [write_coco("b", grey=90)], [], batch_size=2, pseudo_share=0.1)
    with pytest.raises(ConfigError, match=r"pseudo_share 0\.1 of a batch of 2"):
        ready(data).train_dataloader()


def test_a_set_smaller_than_a_step_is_not_dropped_silently(labelled):
    with pytest.raises(DataError, match="9 frames are too few for one step of 16"):
        ready(labelled(batch_size=16)).train_dataloader()


def test_an_epoch_without_batches_is_refused_at_once(labelled):
    with pytest.raises(ConfigError, match=r"data\.batches_per_epoch must be at least 1, got 0\."):
        labelled(batches_per_epoch=0)


def test_small_sets_repeat_when_told_to(labelled):
    loader = ready(labelled(batch_size=16, batches_per_epoch=2)).train_dataloader()
    seeds = [targets.seed for batch in loader for targets in batch.targets]
    assert len(seeds) == len(set(seeds)) == 32


def test_a_recording_on_both_sides_is_refused(write_coco):
    data = LabelledData([write_coco("a", 6)], [write_coco("b", 2, first=4, grey=90)])
    with pytest.raises(DataError, match="north: trained on up to frame 5, held out from frame 4"):
        ready(data)


def test_a_declared_later_block_is_allowed(write_coco):
    data = LabelledData([write_coco("a", 6)], [write_coco("b", 2, first=6, grey=90)], later_block=True)
    assert len(ready(data).val_dataloader()) == 1


def test_frames_without_boxes_are_not_a_training_set(write_coco):
    data = LabelledData([write_coco("a", change=lambda document: document.update(annotations=[]))], [])
    with pytest.raises(DataError, match="there are no boxes to train on"):
        ready(data)


def test_empty_pseudo_labels_are_background_with_empty_pseudo(write_coco):
    def nothing(name):
        return write_coco(name, 4, name, grey=90, change=lambda document: document.update(annotations=[]))

    night, empty_source = nothing("night"), nothing("other")
    with pytest.raises(DataError, match="there are no boxes to train on"):
        ready(StudentData([write_coco("a", 6, grey=20)], [night], [], batch_size=2))
    data = ready(StudentData([write_coco("b", 6, grey=20)], [night], [], batch_size=2, empty_pseudo=True))
    counts = [[len(targets.labels) > 0 for targets in batch.targets] for batch in data.train_dataloader()]
    assert counts and all(count == [True, False] for count in counts)
    with pytest.raises(DataError, match="there are no boxes to train on"):
        ready(StudentData([empty_source], [night], [], batch_size=2, empty_pseudo=True))


def test_a_missing_file_is_named():
    with pytest.raises(DataError, match=r"nowhere/train\.json cannot be read \(No such file"):
        ready(LabelledData(["nowhere/train.json"], []))


def test_broken_images_are_replaced_and_listed(write_coco, image_of, tmp_path):
    train = write_coco("a", 9)
    image_of(train, 4).write_bytes(b"")
    model = fit(LabelledData([train], [], batch_size=3, max_invalid_share=0.2), tmp_path)
    names = [name for step in model.seen for name, _ in step]
    assert names.count("north/005.png") == 6
    listed = json.loads((tmp_path / "quarantine.json").read_text())["images"]
    assert [entry["file_name"] for entry in listed] == ["north/004.png"]


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_images_stop_the_run(write_coco, image_of, tmp_path, workers):
    train = write_coco("a", 9)
    image_of(train, 4).write_bytes(b"")
    with pytest.raises(DataError, match=r"^1 of 9 images are broken, more than the share of 0\.05") as caught:
        fit(LabelledData([train], [], batch_size=3, workers=workers), tmp_path)
    assert "Traceback" not in str(caught.value)
    assert (tmp_path / "quarantine.json").is_file()


def test_broken_held_out_images_are_left_out(write_coco, image_of):
    val = write_coco("b", 5, "south", grey=90)
    image_of(val, 1).write_bytes(b"")
    data = ready(LabelledData([write_coco("a")], [val], batch_size=2, max_invalid_share=0.2))
    batches = list(data.val_dataloader())
    assert [f.index for batch in batches for f in batch.frames] == [0, 2, 3, 4]
    assert isinstance(batches[0], Batch)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"target_batch_size": 0}, r"data\.target_batch_size must be at least 1, got 0"),
        ({"curriculum": [30, 50]}, r"data\.curriculum must be shares above 0 and up to 1.*got \[30, 50\]"),
        ({"curriculum": [0.0, 1.0]}, r"data\.curriculum must be shares"),
        ({"mixed": True}, r"data\.mixed: true needs data\.curriculum"),
        ({"restyle": 2.0, "mixed": True}, r"(?s)data\.restyle must be in 0\.\.1.*data\.mixed"),
    ],
)
def test_invalid_options_of_target_frames_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        AdaptationData([], **settings)
