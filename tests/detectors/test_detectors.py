"""What both detectors promise."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cahqp.detectors.base import Output
from cahqp.detectors.layers import denoising
from cahqp.detectors.losses import criterion
from cahqp.detectors.losses.criterion import SetCriterion
from cahqp.detectors.model_file import load, save
from cahqp.detectors.prompts.visual_prompt import PromptedFeatures
from cahqp.structures import Detections, Targets


def train_step(detector, images, targets) -> torch.Tensor:
    losses = SetCriterion(detector.class_loss)(detector(images, None, targets), targets)
    total = sum(value.sum() for value in losses.values())
    total.backward()
    return total


def same(first, second, **tolerance) -> None:
    torch.testing.assert_close(first.pred_logits, second.pred_logits, **tolerance)
    torch.testing.assert_close(first.pred_boxes, second.pred_boxes, **tolerance)


@pytest.mark.parametrize("size", [(64, 96), (61, 90)])
def test_shapes(detector, size):
    detector.train()
    out = detector(torch.randn(2, 3, *size), None, [Targets(torch.tensor([[3.0, 3, 30, 30]]), torch.tensor([1]))] * 2)
    assert out.pred_logits.shape == (2, 10, 3) and out.pred_boxes.shape == (2, 10, 4)
    assert out.aux_logits.shape == (1, 2, 10, 3) and out.encoder_boxes.shape == (2, 10, 4)
    assert out.sizes.tolist() == [list(map(float, size))] * 2
    assert (out.denoising.groups, out.denoising.slots) == (6, 1)
    assert out.denoising.logits.shape == (2, 2, 12, 3) and out.denoising.boxes.shape == (2, 2, 12, 4)
    tokens = sum(h * w for h, w in out.features.spatial_shapes)
    assert out.features.padding.shape == (2, tokens) and out.features.encoder[-1].shape == (2, tokens, 32)
    assert [f.shape for f in out.features.decoder] == [(2, 10, 32)] * 2
    assert [tuple(f.shape[2:]) for f in out.features.backbone] == out.features.spatial_shapes


def test_boxes_depend_on_the_image(detector, images):
    with torch.no_grad():
        out = detector(images)
    assert (out.pred_boxes[0] - out.pred_boxes[1]).abs().max() > 1e-3


def test_the_same_image_gives_the_same_bits(detector, images):
    with torch.no_grad():
        first, second = detector(images), detector(images)
    same(first, second, atol=0, rtol=0)


def test_an_image_does_not_depend_on_its_batch(detector, images):
    with torch.no_grad():
        among, alone = detector(images), detector(images[1:])
    second = replace(among, pred_logits=among.pred_logits[1:], pred_boxes=among.pred_boxes[1:])
    same(second, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("boxes", ["everywhere", "in one image", "nowhere", "not asked for"])
def test_every_parameter_gets_a_gradient(detector, images, targets, boxes):
    detector.train()
    given = {"everywhere": targets, "in one image": [targets[0], Targets.empty()]}.get(boxes, [Targets.empty()] * 2)
    if boxes == "not asked for":
        out = detector(images)
        (out.pred_logits.sum() + out.pred_boxes.sum() + out.aux_boxes.sum() + out.aux_logits.sum()).backward()
        (detector(images).encoder_logits.sum() + detector(images).encoder_boxes.sum()).backward()
    else:
        assert train_step(detector, images, given).isfinite()
    missing = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)


def test_with_boxes_every_room_learns(detector, images, targets):
    train_step(detector.train(), images, targets)
    silent = {n for n, p in detector.named_parameters() if p.requires_grad and p.grad is not None and not p.grad.any()}
    assert not {name for name in silent if "conv" not in name and "norm" not in name}, silent


def test_denoising_changes_no_other_prediction(detector, images, targets):
    for module in detector.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        with_it, without = detector(images, None, targets), detector(images)
    assert with_it.denoising is not None and without.denoising is None
    same(with_it, without, atol=1e-6, rtol=0)


def test_denoising_is_for_training_only(detector, images, targets):
    assert detector(images, None, targets).denoising is None


def gradients(detector) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in detector.named_parameters() if p.grad is not None}
    detector.zero_grad()
    return found


def test_two_ranks_train_as_one(detector, images, targets, monkeypatch):
    """The second rank has no box; BatchNorm is frozen. In float64, for rounding is the processor's."""
    detector, images = detector.double(), images.double()
    targets = [targets[0], Targets.empty()]
    for module in detector.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    train_step(detector, images, targets)
    whole = gradients(detector)
    monkeypatch.setattr(denoising, "maximum_over_ranks", lambda count, device: 3)
    monkeypatch.setattr(criterion, "world_size", lambda: 2)
    monkeypatch.setattr(criterion, "sum_over_ranks", lambda value: torch.tensor(3.0))
    parts = []
    for rank in range(2):
        train_step(detector, images[rank : rank + 1], [targets[rank]])
        parts.append(gradients(detector))
    for name, expected in whole.items():
        averaged = (parts[0][name] + parts[1][name]) / 2  # what DistributedDataParallel makes of it
        assert (averaged - expected).norm() <= 1e-4 * expected.norm() + 1e-6, name


class Shift(nn.Module):
    """Stand-in for a prompt that adds a constant."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by, self.seen = by, []

    def forward(self, maps, masks, projected):
        self.seen = [(m.shape, k.shape, k.dtype) for m, k in zip(maps, masks, strict=True)]
        return PromptedFeatures([m + self.by for m in maps], None, torch.zeros(0))


def test_a_prompt_changes_what_enters_the_encoder(detector, images):
    with torch.no_grad():
        plain = detector(images)
        detector.prompt = Shift(0.0)
        identity = detector(images)
        detector.prompt = Shift(1.0)
        moved = detector(images)
    same(plain, identity, atol=0, rtol=0)
    torch.testing.assert_close(moved.features.backbone[0], plain.features.backbone[0] + 1)
    assert not torch.allclose(moved.pred_logits, plain.pred_logits)
    for (shape, mask_shape, dtype), one in zip(detector.prompt.seen, plain.features.backbone, strict=True):
        assert shape == one.shape and mask_shape == (2, *shape[2:]) and dtype == torch.bool


def listed(found: Detections) -> torch.Tensor:
    return torch.cat([found.boxes, found.scores[:, None], found.labels[:, None].float()], 1)


def test_decode_does_not_depend_on_the_order_of_queries(detector, images):
    with torch.no_grad():
        out = detector(images)
    turned = replace(out, pred_logits=out.pred_logits.flip(1), pred_boxes=out.pred_boxes.flip(1))
    for one, other in zip(detector.decode(out, out.sizes), detector.decode(turned, out.sizes), strict=True):
        # Not to the bit: a sigmoid's last bit depends on where in a vector a value stands.
        torch.testing.assert_close(listed(one), listed(other), atol=1e-6, rtol=1e-6)


def test_decode_names_the_best_pairs_in_pixels(detector, images):
    with torch.no_grad():
        out = detector(images)
    out.pred_logits[0] = -20
    out.pred_logits[0, 4, 2], out.pred_logits[0, 7, 0], out.pred_logits[0, 4, 1] = 3, 2, 1
    out.pred_boxes[0, 4] = torch.tensor([0.5, 0.25, 0.2, 0.1])
    found = detector.decode(out, torch.tensor([[100, 200], [50, 50]]))[0]
    assert len(found) == 8 and found.labels[:3].tolist() == [2, 0, 1]
    torch.testing.assert_close(found.scores[:3], torch.tensor([3.0, 2, 1]).sigmoid())
    torch.testing.assert_close(found.boxes[0], torch.tensor([80.0, 20, 120, 30]))
    assert torch.equal(found.boxes[0], found.boxes[2])


def test_decode_scales_to_the_sizes_given(detector, images):
    with torch.no_grad():
        out = detector(images)
    once, twice = detector.decode(out, out.sizes)[1], detector.decode(out, out.sizes * 2)[1]
    torch.testing.assert_close(twice.boxes, once.boxes * 2)


def test_more_queries_than_tokens_are_cut(build, kind, images):
    detector = build(kind, queries=5000).eval()
    with torch.no_grad():
        out = detector(images)
    assert out.pred_logits.shape[1] == out.features.padding.shape[1]
    assert out.pred_boxes.isfinite().all()


def test_mixed_precision_detects_about_the_same(detector, images, targets):
    with torch.no_grad():
        exact = detector(images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = detector(images)
        assert train_step(detector.train(), images, targets).isfinite()
    assert mixed.pred_boxes.dtype == torch.float32
    assert (
        mixed.encoder_logits.float().sigmoid().amax(-1) - exact.encoder_logits.sigmoid().amax(-1)
    ).abs().max() < 0.02


@pytest.mark.parametrize("classes", [[], ["car", "car"]])
def test_classes_must_differ(build, kind, classes):
    with pytest.raises(ValueError, match="one or more different names"):
        build(kind, classes=classes)


def test_the_backbone_has_its_own_parameter_group(detector):
    backbone = {id(p) for p in detector.backbone_parameters()}
    assert backbone == {id(p) for p in detector.backbone.parameters()}


def test_decode_drops_the_second_name_of_an_object_only_if_asked(detector):
    logits = torch.tensor([[[3.0, -9, -9], [2.0, -9, -9], [-9, 1.0, -9], [0.0, -9, -9]]])
    boxes = torch.tensor([[[0.3, 0.3, 0.2, 0.2], [0.31, 0.3, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]])
    out = Output(logits, boxes, *[torch.zeros(0)] * 5, features=None)
    detector.max_detections = 4
    assert len(detector.decode(out, torch.tensor([[100, 100]]))[0]) == 4
    detector.nms_iou = 0.6
    found = detector.decode(out, torch.tensor([[100, 100]]))[0]
    # Another class may stand at the same place: which of the two it is, scores say.
    assert [(round(float(s), 2), int(c)) for s, c in zip(found.scores, found.labels, strict=True)] == [
        (0.95, 0), (0.73, 1), (0.5, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("overlap", [0.0, -0.5, 1.5])
def test_an_impossible_overlap_is_refused(build, kind, overlap):
    with pytest.raises(ValueError, match="nms_iou must be above 0"):
        build(kind, nms_iou=overlap)


def test_a_model_file_keeps_its_suppression(build, kind, tmp_path):
    save(tmp_path / "model.safetensors", build(kind, nms_iou=0.55))
    assert load(tmp_path / "model.safetensors").nms_iou == 0.55


def test_features_have_the_described_shape(detector, images, targets):
    features, shape = detector.train()(images, None, targets).features, detector.alignment_shape
    assert [m.shape[1] for m in features.backbone] == [shape.input_dim] * shape.input_levels
    assert len(features.spatial_shapes) == shape.levels and shape.dim % shape.heads == 0
    assert [t.shape[::2] for t in features.encoder] == [(2, shape.dim)] * shape.encoder_layers
    assert [q.shape for q in features.decoder] == [(2, 10, shape.dim)] * shape.decoder_layers
