"""Soft targets, and target views with hidden blocks."""

from dataclasses import replace

import pytest
import torch

from cahqp.adaptation.masking import mask_blocks
from cahqp.adaptation.soft_targets import class_scores, soften
from cahqp.detectors.base import AlignmentFeatures, Output
from cahqp.detectors.losses.criterion import SetCriterion
from cahqp.structures import Targets

LAYERS, QUERIES, CLASSES = 2, 6, 3


@pytest.fixture
def output():
    torch.manual_seed(0)
    logits, boxes = torch.randn(LAYERS + 1, 2, QUERIES, CLASSES), torch.rand(LAYERS + 1, 2, QUERIES, 4) * 0.4 + 0.3
    features = AlignmentFeatures([], [], [], [], torch.zeros(2, 0, dtype=torch.bool))
    logits.requires_grad_()
    sizes = torch.tensor([[64.0, 96.0], [64.0, 48.0]])
    return Output(logits[1], boxes[1], logits[:1], boxes[:1], logits[2], boxes[2], sizes, features)


@pytest.fixture
def targets():
    return [
        Targets(torch.tensor([[10.0, 10, 40, 40], [50, 20, 90, 60]]), torch.tensor([0, 2]), torch.tensor([1.0, 0.5])),
        Targets(torch.tensor([[0.0, 0, 20, 30]]), torch.tensor([1])),
    ]


def test_scores_are_those_of_the_query_that_gave_the_box(output):
    cx, cy, w, h = output.pred_boxes[1, 4].tolist()
    box = torch.tensor([[(cx - w / 2) * 48, (cy - h / 2) * 64, (cx + w / 2) * 48, (cy + h / 2) * 64]])
    scores = class_scores(output, [Targets.empty(), Targets(box, torch.tensor([0]))])
    assert scores[0].shape == (0, CLASSES)
    torch.testing.assert_close(scores[1][0], output.pred_logits[1, 4].sigmoid())


@pytest.mark.parametrize("class_loss", ["focal", "varifocal"])
def test_soft_targets_replace_the_matched_rows_alone(output, targets, class_loss):
    criterion = SetCriterion(class_loss)
    hard = criterion(output, targets)["class"]
    scores = [torch.tensor([[0.7, 0.2, 0.0], [0.1, 0.1, 0.6]]), torch.tensor([[0.0, 0.9, 0.3]])]
    soft = soften(hard, criterion, output, targets, scores)
    (before,) = torch.autograd.grad(hard.sum(), output.pred_logits, retain_graph=True)
    (after,) = torch.autograd.grad(soft.sum(), output.pred_logits)
    changed = (before != after).any(-1)
    assert changed.sum(1).tolist() == [2, 1]
    row = changed[1].nonzero()[0, 0]
    logits = output.pred_logits[1, row].detach().requires_grad_()
    distance = (scores[1][0] - logits.sigmoid()).abs() ** 2
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, scores[1][0], reduction="none")
    (expected,) = torch.autograd.grad((distance * entropy).sum() / 2.5, logits)
    torch.testing.assert_close(after[1, row], expected)


def test_soft_targets_count_by_weight_and_pass_without_boxes(output, targets):
    criterion, empty = SetCriterion(), [Targets.empty(), Targets.empty()]
    none = criterion(output, empty)["class"]
    torch.testing.assert_close(soften(none, criterion, output, empty, [torch.zeros(0, CLASSES)] * 2), none)
    weightless = [replace(t, weights=torch.zeros(len(t))) for t in targets]
    hard = criterion(output, weightless)["class"]
    scores = [torch.full((len(t), CLASSES), 0.5) for t in targets]
    torch.testing.assert_close(soften(hard, criterion, output, weightless, scores), hard)


def test_blocks_are_hidden_by_seed_and_share():
    images = torch.full((2, 3, 64, 80), 200, dtype=torch.uint8)
    masked = mask_blocks(images, 0.5, 16, (0.5, 0.25, 0.0), [1, 2])
    hidden = (masked != 200).all(1)
    blocks = hidden.reshape(2, 4, 16, 5, 16).float().mean((2, 4))
    assert set(blocks.flatten().tolist()) == {0.0, 1.0}
    assert 0.2 < blocks.mean() < 0.8
    assert masked[0, :, hidden[0]][:, 0].tolist() == [128, 64, 0]
    assert torch.equal(mask_blocks(images[1:], 0.5, 16, (0.5, 0.25, 0.0), [2])[0], masked[1])
    assert not torch.equal(hidden[0], hidden[1])
    assert torch.equal(mask_blocks(images, 0.0, 16, (0, 0, 0), [1, 2]), images)
    assert (mask_blocks(images, 1.0, 30, (0, 0, 0), [None, None]) == 0).all()


def test_hidden_blocks_do_not_depend_on_the_padding():
    alone, padded = torch.full((1, 3, 40, 50), 200, dtype=torch.uint8), torch.zeros(1, 3, 64, 80, dtype=torch.uint8)
    padded[:, :, :40, :50] = 200
    one = mask_blocks(alone, 0.5, 16, (1.0, 0.0, 0.0), [3])
    two = mask_blocks(padded, 0.5, 16, (1.0, 0.0, 0.0), [3], [(40, 50)])
    assert 0 < (one != 200).any(1).float().mean() < 1
    assert torch.equal(one, two[:, :, :40, :50])
