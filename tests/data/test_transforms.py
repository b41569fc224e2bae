import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch

from cahqp.data.transforms import plain, strong, weak
from cahqp.structures import Preprocessing, Targets

RULE = Preprocessing(size=(32, 48))


def noise(height=48, width=72):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def some_targets():
    boxes = torch.tensor([[0.0, 0, 20, 20], [30, 10, 50, 40], [60, 30, 72, 48], [10, 10, 11, 11]])
    return Targets(boxes, torch.arange(4), torch.tensor([0.1, 0.2, 0.3, 0.4]), ignore=boxes[:2] + 1)


def markers(targets, height=48, width=72):
    """Return a black image in which each box is filled with a grey of its own."""
    image = np.zeros((height, width, 3), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(targets.boxes.int().tolist()):
        image[y1:y2, x1:x2] = 60 * (number + 1)
    return image


def test_plain_resizes_and_keeps_every_box():
    image, targets = plain(RULE)(noise(), some_targets(), 0)
    assert image.shape == (32, 48, 3)
    torch.testing.assert_close(targets.boxes, some_targets().boxes * 2 / 3)
    assert len(targets.ignore) == 2


def test_expected_objects_stay_with_their_regions():
    targets = Targets.empty()
    regions = torch.tensor([[-9.0, -9, -1, -1], [30, 10, 50, 40]])
    moved = plain(RULE)(noise(), replace(targets, ignore=regions, ignore_weights=torch.tensor([0.2, 0.7])), 0)[1]
    assert moved.ignore_weights.tolist() == pytest.approx([0.7])


def test_plain_keeps_the_aspect_where_the_rule_says_so():
    image, _ = plain(Preprocessing(short_side=24, max_side=30))(noise(), Targets.empty(), 0)
    assert image.shape == (20, 30, 3)


@pytest.mark.parametrize("make", [weak, strong])
def test_the_same_seed_gives_the_same_view_whatever_was_before(make):
    first, second = make(RULE), make(RULE)
    for seed in range(5):
        second(noise(), some_targets(), seed + 100)
    for seed in range(40):
        (a, one), (b, two) = first(noise(), some_targets(), seed), second(noise(), some_targets(), seed)
        assert np.array_equal(a, b)
        assert torch.equal(one.boxes, two.boxes)


def _views(seeds):
    return [strong(RULE)(noise(), Targets.empty(), seed)[0] for seed in seeds]


def test_another_process_makes_the_same_view():
    with multiprocessing.get_context("fork").Pool(1) as pool:
        there = pool.apply(_views, (range(20),))
    assert all(np.array_equal(a, b) for a, b in zip(_views(range(20)), there, strict=True))


def test_another_seed_gives_another_view():
    assert len({image.tobytes() for image in _views(range(30))}) == 30


@pytest.mark.parametrize("seed", range(12))
def test_boxes_stay_on_what_they_were_drawn_round(seed):
    before = some_targets()[:3]
    image, after = weak(RULE)(markers(before), before, seed)
    for (x1, y1, x2, y2), label in zip(after.boxes.round().int().tolist(), after.labels.tolist(), strict=True):
        assert abs(int(image[(y1 + y2) // 2, (x1 + x2) // 2, 0]) - 60 * (label + 1)) < 3


@pytest.mark.parametrize("make", [weak, strong])
def test_boxes_stay_inside_and_keep_their_weights(make):
    for seed in range(60):
        image, targets = make(RULE)(noise(), some_targets(), seed)
        limit = torch.tensor([image.shape[1], image.shape[0]] * 2)
        assert (targets.boxes >= 0).all() and (targets.boxes <= limit).all()
        assert (targets.boxes[:, 2:] - targets.boxes[:, :2] >= 2).all()
        torch.testing.assert_close(targets.weights, (targets.labels + 1) / 10)
        assert (targets.ignore[:, 2:] > targets.ignore[:, :2]).all()


def test_boxes_of_which_little_is_left_are_dropped():
    def share_left(seed):
        corner = Targets(torch.tensor([[0.0, 0, 12, 8]]), torch.tensor([0]))
        _, targets = strong(RULE)(noise(), corner, seed)
        view = strong(RULE).view(48, 72, seed)
        return len(targets), max(0, 12 - view.left) * max(0, 8 - view.top) / 96

    found = [share_left(seed) for seed in range(80)]
    assert all(kept == (left >= 0.3) for kept, left in found)
    assert {kept for kept, _ in found} == {0, 1}


def test_nothing_to_detect_is_normal():
    _, targets = strong(RULE)(noise(), Targets.empty(), 3)
    assert targets.boxes.shape == (0, 4)


def test_both_views_share_their_geometry():
    view, changed, targets = strong(RULE).views(noise(), some_targets(), 5)
    alone, same = strong(RULE)(noise(), some_targets(), 5)
    assert not np.array_equal(view, changed)
    assert np.array_equal(changed, alone)
    assert torch.equal(targets.boxes, same.boxes)


def test_without_the_photometric_part_both_views_are_one():
    view, changed, _ = weak(RULE).views(noise(), Targets.empty(), 5)
    assert np.array_equal(view, changed)


def test_strong_views_reach_into_the_night():
    grey = np.full((48, 72, 3), 128, np.uint8)
    means = [strong(RULE)(grey, Targets.empty(), seed)[0].mean() for seed in range(200)]
    assert 0.1 < np.mean(np.array(means) < 40) < 0.5
    assert np.mean(np.array(means) > 100) > 0.25
