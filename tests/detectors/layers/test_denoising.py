from dataclasses import replace

import pytest
import torch

from cahqp.detectors.layers import denoising as module
from cahqp.detectors.layers.denoising import DenoisingQueries, denoising_queries
from cahqp.structures import Targets

SIZES = torch.tensor([[100.0, 200.0], [100.0, 200.0]])
EPS = 1e-6


def target(count: int, seed: int | None = 0) -> Targets:
    """Boxes of 20x10 pixels, far from the border."""
    x = 60 + 10.0 * torch.arange(count)
    return Targets(torch.stack([x, x * 0 + 45, x + 20, x * 0 + 55], 1), torch.arange(count) % 3, seed=seed)


def noised(targets, number=6, classes=3, **noise) -> DenoisingQueries | None:
    settings = {"number": number, "label_noise": 0.5, "box_noise": 1.0, "eps": EPS, **noise}
    return denoising_queries(targets, SIZES[: len(targets)], classes, **settings)


def test_the_mask_isolates_groups_and_hides_them_from_matching_queries():
    queries = noised([target(2), target(1)], number=4)
    mask = queries.attention_mask(3)
    assert (queries.groups, queries.slots, queries.labels.shape) == (2, 2, (2, 8))
    for row in range(11):
        for column in range(11):
            same_group = row < 8 and row // 4 == column // 4
            assert bool(mask[row, column]) == (column < 8 and not same_group)


def shifts(queries: DenoisingQueries, boxes: torch.Tensor) -> torch.Tensor:
    """Return (groups, 2, slots, 4): how far each corner moved, in half sides of its box."""
    cxcywh = queries.boxes.sigmoid().view(queries.groups, 2, queries.slots, 4)
    corners = torch.cat([cxcywh[..., :2] - cxcywh[..., 2:] / 2, cxcywh[..., :2] + cxcywh[..., 2:] / 2], -1)
    half = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2) / 2
    return (corners * SIZES[0, [1, 0, 1, 0]] - boxes).abs() / half


@pytest.mark.parametrize("scale", [0.45, 0.2])  # from 0.5 on a negative may be turned inside out, and loses its side
def test_positives_stay_within_half_a_side_and_negatives_lie_beyond(scale):
    moved = shifts(noised([target(2)], number=100, box_noise=scale), target(2).boxes) / scale
    assert moved[:, 0].min() >= 0 and moved[:, 0].max() <= 1 + 1e-3
    assert moved[:, 1].min() >= 1 - 1e-3 and moved[:, 1].max() <= 2 + 1e-3
    assert moved[:, 0].std() > 0.2 and moved[:, 1].std() > 0.2


def test_half_of_the_label_noise_draws_another_class():
    clean = noised([target(3)], number=900, label_noise=0.0).labels.view(-1, 3)
    assert (clean == torch.arange(3)).all()
    labels = noised([target(3)], number=900, label_noise=0.5).labels.view(-1, 3)
    assert 0.12 < (labels != torch.arange(3)).float().mean() < 0.21  # a quarter is drawn, a third of it alike
    assert labels.min() == 0 and labels.max() == 2


def test_boxes_stay_in_the_image():
    big = Targets(torch.tensor([[0.0, 0.0, 200.0, 100.0]]), torch.tensor([0]), seed=0)
    boxes = noised([big]).boxes
    assert boxes.isfinite().all()
    cxcywh = boxes.sigmoid()
    assert (cxcywh[..., :2] - cxcywh[..., 2:] / 2 > -1e-3).all()
    assert (cxcywh[..., :2] + cxcywh[..., 2:] / 2 < 1 + 1e-3).all()


def test_noise_is_that_of_the_images_own_seed():
    alone = noised([target(2, seed=7)])
    among = noised([target(1, seed=1), target(2, seed=7)])
    assert torch.equal(alone.boxes[0], among.boxes[1]) and torch.equal(alone.labels[0], among.labels[1])
    assert not torch.equal(alone.boxes, noised([target(2, seed=8)]).boxes)


def test_a_more_crowded_neighbour_leaves_the_first_groups_noise_alone():
    alone = noised([target(2, seed=7)])
    among = noised([target(3, seed=1), target(2, seed=7)])
    assert (alone.groups, among.groups) == (3, 2)
    assert torch.equal(alone.boxes[0, :2], among.boxes[1, :2])


def test_without_a_seed_the_global_generator_decides():
    first, second = noised([target(2, seed=None)]), noised([target(2, seed=None)])
    assert not torch.equal(first.boxes, second.boxes)


def test_empty_slots_are_marked():
    queries = noised([target(1), Targets.empty()], number=1)
    assert queries.labels[1].tolist() == [3, 3]
    assert (queries.boxes[1] == 0).all()


def test_no_boxes_give_no_queries():
    assert noised([Targets.empty(), Targets.empty()]) is None
    assert noised([target(2)], number=0) is None


def test_many_boxes_make_one_group():
    assert noised([target(9)], number=6).groups == 1


def test_slots_follow_the_fullest_image_of_any_rank(monkeypatch):
    monkeypatch.setattr(module, "maximum_over_ranks", lambda count, device: max(count, 3))
    queries = noised([Targets.empty()])
    assert (queries.groups, queries.slots) == (2, 3)
    assert (queries.labels == 3).all()


def test_noise_uses_the_valid_part_of_a_padded_image():
    half = replace(target(1), boxes=target(1).boxes / 2)
    small = denoising_queries([half], SIZES[:1] / 2, 3, number=6, label_noise=0.5, box_noise=1.0, eps=EPS)
    torch.testing.assert_close(small.boxes, noised([target(1)]).boxes, atol=1e-4, rtol=1e-4)
