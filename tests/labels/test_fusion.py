import numpy as np
import pytest

from cahqp.labels.fusion import ViewPredictions, fuse, nms, soft_nms, weighted_fusion


def overlap(a, b):
    """Return the intersection over union of two boxes, written down once more."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (both - width * height)


def plain_soft_nms(boxes, scores, sigma, floor=0.001):
    left, found = [(s, tuple(b)) for b, s in zip(boxes, scores, strict=True)], []
    while left:
        best = max(left)
        left.remove(best)
        found.append(best)
        lowered = [(s * np.exp(-(overlap(best[1], b) ** 2) / sigma), b) for s, b in left]
        left = [(s, b) for s, b in lowered if s >= floor]
    return found


def plain_weighted_fusion(boxes, scores, weights, iou):
    clusters = []
    for row in sorted(range(len(boxes)), key=lambda n: -scores[n]):
        means = [mean for mean, _ in clusters]
        near = [overlap(boxes[row], mean) for mean in means]
        if near and max(near) > iou:
            cluster = clusters[near.index(max(near))]
            cluster[1].append(row)
            share = sum(scores[n] * weights[n] for n in cluster[1])
            cluster[0][:] = [sum(scores[n] * weights[n] * boxes[n][k] for n in cluster[1]) / share for k in range(4)]
        else:
            clusters.append(([*boxes[row]], [row]))
    score = [sum(scores[n] * weights[n] for n in own) / sum(weights[n] for n in own) for _, own in clusters]
    return np.array([mean for mean, _ in clusters]), np.array(score)


def crowd(seed, count=40):
    """Return boxes that overlap a lot, with scores that all differ."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(15, 40, (count, 2))], 1)
    return boxes, rng.permutation(np.linspace(0.05, 0.95, count)), rng.uniform(0.5, 2, count)


@pytest.mark.parametrize("seed", range(5))
def test_soft_nms_equals_the_plain_one(seed):
    boxes, scores, _ = crowd(seed)
    found = soft_nms(boxes, scores, sigma=0.3)
    expected = plain_soft_nms(boxes, scores, sigma=0.3)
    assert np.abs(found[0] - np.array([box for _, box in expected])).max() <= 1e-6
    assert np.abs(found[1] - np.array([score for score, _ in expected])).max() <= 1e-6
    assert len(found[1]) > 5
    assert found[1][-1] < scores.max()


@pytest.mark.parametrize("seed", range(5))
def test_weighted_fusion_equals_the_plain_one(seed):
    boxes, scores, weights = crowd(seed)
    found = weighted_fusion(boxes, scores, weights, 0.45)
    expected = plain_weighted_fusion(boxes, scores, weights, 0.45)
    assert np.abs(found[0] - expected[0]).max() <= 1e-6
    assert np.abs(found[1] - expected[1]).max() <= 1e-6
    assert 5 < len(found[1]) < len(boxes)


@pytest.mark.parametrize("method", ["nms", "soft-nms", "wbf"])
def test_the_order_of_input_does_not_show(method):
    rng = np.random.default_rng(3)
    boxes, scores, _ = crowd(3, 30)
    scores = np.round(scores, 1)  # so that many are equal
    labels = rng.integers(0, 2, 30)

    def looks(order):
        parts = [order[order % 3 == n] for n in range(3)]
        found = [ViewPredictions(boxes[p], scores[p], labels[p], weight=1 + p.min() % 3) for p in parts]
        return [found[n] for n in np.argsort([part[0] for part in parts])]

    expected = fuse(looks(np.arange(30)), method)
    for seed in range(5):
        shuffled = fuse(looks(np.random.default_rng(seed).permutation(30)), method)
        for name in ("boxes", "scores", "labels", "agreement"):
            assert np.abs(getattr(shuffled, name) - getattr(expected, name)).max() <= 1e-9, name


CAR = np.array([[10.0, 10.0, 50.0, 40.0]])
ONE = np.zeros(1, np.int64)
NOTHING = ViewPredictions(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))


@pytest.mark.parametrize("method", ["nms", "soft-nms", "wbf"])
def test_what_one_of_two_looks_claims_counts_half(method):
    both = fuse([ViewPredictions(CAR, np.array([0.8]), ONE), ViewPredictions(CAR, np.array([0.8]), ONE)], method)
    one = fuse([ViewPredictions(CAR, np.array([0.8]), ONE), NOTHING], method)
    assert both.scores[0] == pytest.approx(0.8)
    assert (one.scores[0], one.agreement[0]) == pytest.approx((0.4, 0.5))


def test_a_look_that_cannot_see_the_place_is_not_asked():
    tile = ViewPredictions(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), region=(60, 0, 120, 80))
    assert fuse([ViewPredictions(CAR, np.array([0.8]), ONE), tile]).scores[0] == pytest.approx(0.8)


def test_classes_are_not_mixed():
    found = fuse([ViewPredictions(CAR, np.array([0.8]), ONE), ViewPredictions(CAR, np.array([0.6]), ONE + 1)])
    assert found.labels.tolist() == [0, 1]


def test_nothing_gives_nothing():
    assert len(fuse([NOTHING, NOTHING]).scores) == 0
    assert len(fuse([]).scores) == 0


def test_nms_keeps_the_better_of_two():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]], np.float64)
    assert nms(boxes, np.array([0.5, 0.9, 0.7]), 0.7).tolist() == [1, 2]
