import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from cahqp.detectors.losses.boxes import area, cxcywh_to_xyxy, iou_and_giou, xyxy_to_cxcywh
from cahqp.detectors.losses.matcher import HungarianMatcher
from cahqp.detectors.losses.targets import pad_targets
from cahqp.structures import Targets

SIZES = torch.tensor([[100.0, 200.0], [50.0, 100.0]])


def target(count: int) -> Targets:
    low = torch.rand(count, 2) * 40
    return Targets(torch.cat([low, low + 2 + torch.rand(count, 2) * 8], 1), torch.randint(0, 3, (count,)))


def predictions(queries=6, layers=2):
    return torch.randn(layers, 2, queries, 3), torch.rand(layers, 2, queries, 4) * 0.5 + 0.2


def giou(a: list[float], b: list[float]) -> float:
    """Generalised IoU of two cxcywh boxes, one number at a time."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    left, right = max(ax - aw / 2, bx - bw / 2), min(ax + aw / 2, bx + bw / 2)
    top, bottom = max(ay - ah / 2, by - bh / 2), min(ay + ah / 2, by + bh / 2)
    shared = max(0, right - left) * max(0, bottom - top)
    union = aw * ah + bw * bh - shared
    hull = (max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)) * (
        max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    )
    return shared / union - (hull - union) / hull


def slow_cost(logits: np.ndarray, boxes: np.ndarray, labels, wanted) -> np.ndarray:
    """Return (Q, M) for one layer of one image (DETR's cost with Deformable DETR's focal class cost)."""
    cost = np.zeros((len(logits), len(labels)))
    for q, m in np.ndindex(cost.shape):
        p = 1 / (1 + np.exp(-logits[q, labels[m]]))
        positive, negative = -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p)
        distance = np.abs(boxes[q] - wanted[m]).sum()
        cost[q, m] = 2 * (positive - negative) + 5 * distance - 2 * giou(boxes[q], wanted[m])
    return cost


def test_box_arithmetic():
    boxes = torch.tensor([[0.0, 0, 2, 4], [1, 1, 3, 3], [5, 5, 4, 6]])
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    assert area(boxes).tolist() == [8, 4, 0]
    iou, generalised = iou_and_giou(boxes[0], boxes[1])
    assert iou.item() == pytest.approx(2 / 10) and generalised.item() == pytest.approx(2 / 10 - 2 / 12)


@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (8, 1)])
def test_assignments_equal_a_loop_over_images(counts):
    logits, boxes = predictions()
    targets = [target(n) for n in counts]
    padded = pad_targets(targets, SIZES)
    matches = HungarianMatcher()(logits, boxes, padded)
    found = set(zip(*(t.tolist() for t in (matches.layer, matches.image, matches.query, matches.target)), strict=True))
    expected = set()
    for layer, image in np.ndindex(2, 2):
        wanted = xyxy_to_cxcywh(targets[image].boxes / SIZES[image, [1, 0, 1, 0]]).numpy()
        labels = targets[image].labels.numpy()
        cost = slow_cost(logits[layer, image].numpy(), boxes[layer, image].numpy(), labels, wanted)
        fast = HungarianMatcher().cost(logits, boxes, padded)[layer, image, :, : counts[image]]
        np.testing.assert_allclose(fast, cost, atol=1e-4)
        expected |= {(layer, image, int(q), int(m)) for q, m in zip(*linear_sum_assignment(cost), strict=True)}
    assert found == expected


def test_no_boxes_match_nothing():
    matches = HungarianMatcher()(*predictions(), pad_targets([Targets.empty(), Targets.empty()], SIZES))
    assert len(matches.query) == 0


@pytest.mark.parametrize("broken", [0, 1], ids=["logits", "boxes"])
@pytest.mark.parametrize("count", [0, 2])
def test_predictions_that_are_not_finite_are_refused(broken, count):
    made = predictions()
    made[broken][1, 1, 3, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        HungarianMatcher()(*made, pad_targets([target(count), target(count)], SIZES))


def test_targets_are_padded():
    weighted = Targets(torch.tensor([[10.0, 5, 30, 25]]), torch.tensor([2]), torch.tensor([0.25]))
    padded = pad_targets([Targets.empty(), weighted], SIZES)
    assert padded.counts == [0, 1] and padded.weights.tolist() == [[0], [0.25]] and padded.labels[1].tolist() == [2]
    torch.testing.assert_close(padded.boxes[1, 0], torch.tensor([0.2, 0.3, 0.2, 0.4]))
