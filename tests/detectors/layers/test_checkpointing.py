"""Activation checkpointing changes the saved memory and nothing else."""

import gc

import pytest
import torch
from torch import nn

from cahqp.detectors.backbones import TimmBackbone
from cahqp.detectors.layers.checkpointing import checkpointed
from cahqp.detectors.losses.criterion import SetCriterion


def step(detector, images, targets, precision=None):
    """One training step: its gradients, and the buffers after it."""
    detector.train().zero_grad()
    torch.manual_seed(3)
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        losses = SetCriterion("focal")(detector(images, None, targets), targets)
    sum(value.sum() for value in losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in detector.named_parameters() if p.grad is not None}
    return gradients | {name: b.clone() for name, b in detector.named_buffers()}


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [
        {"freeze_norm": False, "dropout": 0.1},
        {"freeze_norm": True, "frozen_stages": 2},
        {"backbone": "mobilenetv3_small_050", "backbone_options": {}, "freeze_norm": False},
    ],
)
def test_gradients_and_statistics_are_the_same_to_the_bit(build, images, targets, settings, precision):
    plain = build("dino", **settings)
    saving = build("dino", **settings, activation_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    expected, found = step(plain, images, targets, precision), step(saving, images, targets, precision)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def kept_for_backward(detector, images, targets) -> int:
    """Return the bytes that a forward pass keeps."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        detector.train()(images, None, targets)
    return sum(kept.values())


def test_less_is_kept(build, images, targets):
    plain, saving = (build("dino", encoder_layers=4, activation_checkpointing=on) for on in (False, True))
    assert kept_for_backward(saving, images, targets) < 0.6 * kept_for_backward(plain, images, targets)


def test_the_model_file_does_not_contain_it(build):
    assert "activation_checkpointing" not in build("dino", activation_checkpointing=True).settings


def test_stages_that_run_in_turn_are_checkpointed_one_by_one():
    backbone = TimmBackbone("resnet10t", (8, 16), options={"channels": (8, 16, 16, 32), "stem_width": 8})
    assert [names[-1] for names in backbone._stages] == ["act1", "layer1", "layer2", "layer3"]
    images = torch.randn(1, 3, 64, 64)
    plain = backbone.eval()(images)
    backbone.checkpointing = True
    assert all(torch.equal(a, b) for a, b in zip(plain, backbone(images), strict=True))


def test_a_failure_inside_leaves_batch_norm_as_it_was():
    norm = nn.BatchNorm1d(2)
    out = checkpointed([norm], torch.randn(4, 2, requires_grad=True))
    with pytest.raises(RuntimeError):
        out.sum().backward(torch.zeros(3))
    out.sum().backward()
    assert norm.momentum == 0.1 and int(norm.num_batches_tracked) == 1
