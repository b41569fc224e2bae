"""The criterion beside a slow one, written from the formulas: one image, one query and one class at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from cahqp.detectors.base import AlignmentFeatures, DenoisingOutput, Output
from cahqp.detectors.losses import criterion as module
from cahqp.detectors.losses.criterion import SetCriterion
from cahqp.structures import Targets

SIZES = torch.tensor([[100.0, 200.0], [50.0, 100.0]])
both_losses = pytest.mark.parametrize("kind", ["focal", "varifocal"])


def target(count: int, **given) -> Targets:
    low = torch.rand(count, 2) * 30
    boxes = torch.cat([low, low + 5 + torch.rand(count, 2) * 15], 1)
    return Targets(boxes, torch.randint(0, 3, (count,)), **given)


def output(images=2, groups=2, slots=3) -> Output:
    """Two decoder layers, the encoder, and denoising; every tensor is a leaf."""

    def leaf(*shape, boxes=False):
        values = torch.rand(*shape, 4) * 0.4 + 0.2 if boxes else torch.randn(*shape, 3)
        return values.requires_grad_()

    noised = 2, images, groups * 2 * slots
    denoising = DenoisingOutput(leaf(*noised), leaf(*noised, boxes=True), groups, slots) if slots else None
    last, before = (images, 6), (1, images, 6)
    predictions = [leaf(*s, boxes=b) for s in (last, before, last) for b in (False, True)]
    return Output(*predictions, SIZES[:images], AlignmentFeatures([], [], [], [], torch.zeros(0)), denoising)


def leaves(out: Output) -> list[torch.Tensor]:
    found = [out.pred_logits, out.pred_boxes, out.aux_logits, out.aux_boxes, out.encoder_logits, out.encoder_boxes]
    return found + ([out.denoising.logits, out.denoising.boxes] if out.denoising else [])


def corners(box):
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def overlap(a, b):
    """Shared area, union and area of the hull of two xyxy boxes."""
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return shared, union, hull


def class_loss(kind, p, iou):
    """Loss of one probability; `iou` is that of its matched box, or `None` where it should be zero."""
    if kind == "focal":
        return -0.25 * (1 - p) ** 2 * np.log(p) if iou is not None else -0.75 * p**2 * np.log(1 - p)
    if iou is None:
        return -0.75 * p**2 * np.log(1 - p)
    return -iou * (iou * np.log(p) + (1 - iou) * np.log(1 - p))


def wanted_boxes(target, size):
    boxes = (target.boxes / size[[1, 0, 1, 0]]).double().numpy()
    return [((a + c) / 2, (b + d) / 2, c - a, d - b) for a, b, c, d in boxes]


def ignored(box, target, size) -> bool:
    box, regions = corners(box), (target.ignore / size[[1, 0, 1, 0]]).double().numpy()
    area = (box[2] - box[0]) * (box[3] - box[1])
    return any(overlap(box, region)[0] / area >= 0.5 for region in regions)


def image_losses(kind, logits, boxes, target, size, pairs) -> np.ndarray:
    """Class, L1 and GIoU loss of one image and layer, not yet divided; `pairs` say which query has which box."""
    total, box_of = np.zeros(3), dict(pairs)
    wanted = wanted_boxes(target, size)
    for query in range(len(logits)):
        box, weight, iou = boxes[query], 1.0, None
        if query in box_of:
            ground_truth, weight = wanted[box_of[query]], float(target.weights[box_of[query]])
            shared, union, hull = overlap(corners(box), corners(ground_truth))
            iou = shared / union
            total[1] += 5 * weight * np.abs(box - ground_truth).sum()
            total[2] += 2 * weight * (1 - iou + (hull - union) / hull)
        elif ignored(box, target, size):
            weight = 0.0
        for category, logit in enumerate(logits[query]):
            matched = query in box_of and category == int(target.labels[box_of[query]])
            total[0] += weight * class_loss(kind, 1 / (1 + np.exp(-logit)), iou if matched else None)
    return total


def hungarian(logits, boxes, target, size):
    wanted = wanted_boxes(target, size)
    cost = np.zeros((len(logits), len(wanted)))
    for q, m in np.ndindex(cost.shape):
        p = 1 / (1 + np.exp(-logits[q, int(target.labels[m])]))
        shared, union, hull = overlap(corners(boxes[q]), corners(wanted[m]))
        focal = -0.25 * (1 - p) ** 2 * np.log(p) + 0.75 * p**2 * np.log(1 - p)
        cost[q, m] = 2 * focal + 5 * np.abs(boxes[q] - wanted[m]).sum() - 2 * (shared / union - (hull - union) / hull)
    return list(zip(*linear_sum_assignment(cost), strict=True))


def slow_criterion(kind, out: Output, targets: list[Targets]) -> dict[str, list[float]]:
    def arrays(*tensors):
        return [t.detach().double().numpy() for t in tensors]

    stages = [
        *zip(*arrays(out.aux_logits, out.aux_boxes), strict=True),
        arrays(out.pred_logits, out.pred_boxes),
        arrays(out.encoder_logits, out.encoder_boxes),
    ]
    normaliser = max(1.0, sum(float(t.weights.sum()) for t in targets))
    main = np.zeros((len(stages), 3))
    for layer, (logits, boxes) in enumerate(stages):
        for image, target in enumerate(targets):
            pairs = hungarian(logits[image], boxes[image], target, SIZES[image])
            main[layer] += image_losses(kind, logits[image], boxes[image], target, SIZES[image], pairs)
    losses = dict(zip(("class", "bbox", "giou"), (main / normaliser).T, strict=True))
    if out.denoising is None:
        return losses
    noised = np.zeros((2, 3))
    for layer, (logits, boxes) in enumerate(zip(*arrays(out.denoising.logits, out.denoising.boxes), strict=True)):
        for image, target in enumerate(targets):
            start = [group * 2 * out.denoising.slots for group in range(out.denoising.groups)]
            pairs = [(s + m, m) for s in start for m in range(len(target))]
            noised[layer] += image_losses(kind, logits[image], boxes[image], target, SIZES[image], pairs)
    noised /= normaliser * out.denoising.groups
    return losses | dict(zip(("dn_class", "dn_bbox", "dn_giou"), noised.T, strict=True))


CASES = {
    "plain": lambda: [target(3), target(1)],
    "one image empty": lambda: [target(0), target(3)],
    "weighted": lambda: [target(3, weights=torch.tensor([1.0, 0.3, 0.0])), target(2, weights=torch.tensor([0.5, 0.9]))],
    "weights below one in all": lambda: [target(1, weights=torch.tensor([0.2])), target(0)],
    "ignored": lambda: [target(2, ignore=torch.tensor([[0.0, 0, 90, 100], [120, 0, 140, 9]])), target(1)],
    "ignored, no boxes": lambda: [target(0, ignore=torch.tensor([[0.0, 0, 100, 60]])), target(1)],
}


@both_losses
@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_the_formulas(kind, case):
    out, targets = output(), CASES[case]()
    losses, expected = SetCriterion(kind)(out, targets), slow_criterion(kind, out, targets)
    assert set(losses) == set(expected)
    for name, value in losses.items():
        np.testing.assert_allclose(value.detach(), expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


@both_losses
def test_a_batch_without_boxes_still_teaches_background(kind):
    out, targets = output(slots=0), [Targets.empty(), Targets.empty()]
    losses = SetCriterion(kind)(out, targets)
    np.testing.assert_allclose(losses["class"].detach(), slow_criterion(kind, out, targets)["class"], rtol=1e-4)
    assert not losses["bbox"].any() and not losses["giou"].any()
    sum(v.sum() for v in losses.values()).backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves(out))


@both_losses
def test_a_box_of_weight_zero_teaches_nothing_about_its_query(kind):
    out, unsure = output(slots=0), target(2, weights=torch.tensor([1.0, 0.0]))
    targets = [unsure, target(1)]
    pairs = hungarian(*(t[0].detach().double().numpy() for t in (out.pred_logits, out.pred_boxes)), unsure, SIZES[0])
    query = {int(m): int(q) for q, m in pairs}
    sum(v.sum() for v in SetCriterion(kind)(out, targets).values()).backward()
    assert not out.pred_logits.grad[0, query[1]].any() and not out.pred_boxes.grad[0, query[1]].any()
    assert out.pred_boxes.grad[0, query[0]].any()


def test_half_a_weight_is_half_the_gradient():
    gradients = []
    for weight in (1.0, 0.5):
        torch.manual_seed(3)
        out, targets = output(slots=0), [target(2, weights=torch.tensor([weight, 1.5 - weight])), target(2)]
        SetCriterion()(out, targets)["bbox"].sum().backward()
        gradients.append(out.pred_boxes.grad[0])
    halved = gradients[1].abs().sum(1) / gradients[0].abs().sum(1)
    assert sorted(r for r in halved.tolist() if r == r) == pytest.approx([0.5, 2.0])


def test_a_query_inside_an_ignored_region_is_left_alone():
    out = output(slots=0)
    inside = torch.tensor([0.25, 0.25, 0.1, 0.1])
    for boxes in (out.pred_boxes, out.aux_boxes, out.encoder_boxes):
        boxes.data[..., 2, :] = inside
        boxes.data[..., 3, :] = inside + torch.tensor([0.06, 0, 0, 0])  # two fifths of it lie inside
    region = torch.tensor([[40.0, 20, 60, 30]])
    SetCriterion()(out, [target(0, ignore=region), target(0)])["class"].sum().backward()
    assert not out.pred_logits.grad[0, 2].any() and not out.aux_logits.grad[0, 0, 2].any()
    assert out.pred_logits.grad[0, 3].all() and out.pred_logits.grad[1, 2].all()


def test_a_matched_query_counts_although_its_region_is_ignored():
    out, everywhere = output(slots=0), torch.tensor([[0.0, 0, 200, 100]])
    SetCriterion()(out, [target(1, ignore=everywhere), target(0)])["class"].sum().backward()
    assert out.pred_logits.grad[0].any(1).sum() == 1


def test_expected_objects_in_ignored_regions_divide_the_losses_too():
    out, region = output(slots=0), torch.tensor([[150.0, 60, 190, 90]])
    targets = [target(2, ignore=region), target(1)]
    counted = [replace(targets[0], ignore_weights=torch.tensor([0.6])), targets[1]]
    plain, divided = (SetCriterion()(out, given) for given in (targets, counted))
    for name, value in plain.items():
        torch.testing.assert_close(divided[name], value * 3 / 3.6)


def test_the_score_target_sends_no_gradient_into_boxes():
    out = output()
    losses = SetCriterion("varifocal")(out, [target(2), target(1)])
    (losses["class"].sum() + losses["dn_class"].sum()).backward()
    assert out.pred_boxes.grad is None or not out.pred_boxes.grad.any()


def split(out: Output, image: int) -> Output:
    def one(x, axis):
        return x.detach().narrow(axis, image, 1).clone().requires_grad_()

    dn = out.denoising
    return replace(
        out,
        pred_logits=one(out.pred_logits, 0), pred_boxes=one(out.pred_boxes, 0),
        aux_logits=one(out.aux_logits, 1), aux_boxes=one(out.aux_boxes, 1),
        encoder_logits=one(out.encoder_logits, 0), encoder_boxes=one(out.encoder_boxes, 0),
        sizes=out.sizes[image : image + 1],
        denoising=DenoisingOutput(one(dn.logits, 1), one(dn.boxes, 1), dn.groups, dn.slots),
    )  # fmt: skip


@both_losses
@pytest.mark.parametrize("counts", [(3, 1), (2, 0), (1, 0)])
def test_two_ranks_have_the_gradient_of_one_process(kind, counts, monkeypatch):
    out, targets = output(), [target(n) for n in counts]
    sum(v.sum() for v in SetCriterion(kind)(out, targets).values()).backward()
    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "sum_over_ranks", lambda value: torch.tensor(float(sum(counts))))
    for rank in range(2):
        part = split(out, rank)
        sum(v.sum() for v in SetCriterion(kind)(part, [targets[rank]]).values()).backward()
        for axis, mine, whole in zip((0, 0, 1, 1, 0, 0, 1, 1), leaves(part), leaves(out), strict=True):
            averaged = mine.grad / 2  # what DistributedDataParallel makes of it
            torch.testing.assert_close(averaged, whole.grad.narrow(axis, rank, 1), atol=1e-6, rtol=1e-5)


def test_half_precision_predictions_are_judged_in_full():
    out, targets = output(), [target(2), target(1)]
    exact = SetCriterion()(out, targets)
    with torch.autocast("cpu", torch.bfloat16):
        inside = SetCriterion()(out, targets)
    assert all(torch.equal(inside[name], exact[name]) for name in exact)


def test_unknown_class_loss_is_refused():
    with pytest.raises(ValueError, match="focal or varifocal, got 'dice'"):
        SetCriterion("dice")
