import pytest
import torch

from cahqp.frame import Frame
from cahqp.structures import Batch, Detections, Preprocessing, Targets, collate, valid_sizes

BOXES = torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 30]])


def test_targets_fill_in_what_is_not_given():
    made = Targets(BOXES, torch.tensor([0, 1]))
    assert made.weights.tolist() == [1, 1] and made.ignore.shape == (0, 4) and made.seed is None


def test_selecting_targets_keeps_ignored_regions_and_the_seed():
    made = Targets(BOXES, torch.tensor([3, 4]), torch.tensor([0.5, 0.7]), ignore=BOXES[:1], seed=7)
    kept = made[torch.tensor([False, True])]
    assert len(kept) == 1 and kept.labels.tolist() == [4] and kept.weights.tolist() == pytest.approx([0.7])
    assert len(kept.ignore) == 1 and kept.seed == 7


def test_selecting_detections_by_order():
    found = Detections(BOXES, torch.tensor([0.1, 0.9]), torch.tensor([0, 1]))
    best = found[found.scores.argsort(descending=True)][:1]
    assert best.labels.tolist() == [1] and torch.equal(best.boxes, BOXES[1:])


@pytest.mark.parametrize("kind", [Detections, Targets])
def test_nothing_is_a_value_too(kind):
    assert len(kind.empty()) == 0 and kind.empty().boxes.shape == (0, 4) and kind.empty().labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"boxes": torch.zeros(2, 5)}, r"boxes must be \(N, 4\) xyxy pixels, got shape \(2, 5\)"),
        ({"boxes": torch.zeros(4)}, r"got shape \(4,\)"),
        ({"labels": torch.zeros(3)}, r"labels must be \(2,\) like the boxes, got shape \(3,\)"),
        ({"weights": torch.zeros(2, 1)}, r"weights must be \(2,\)"),
        ({"ignore": torch.zeros(1, 3)}, r"ignore must be \(N, 4\)"),
    ],
)
def test_wrong_shapes_are_named(given, said):
    with pytest.raises(ValueError, match=said):
        Targets(**{"boxes": BOXES, "labels": torch.tensor([0, 1]), **given})


def test_boxes_are_floating_point():
    with pytest.raises(TypeError, match="int64"):
        Targets(BOXES.long(), torch.tensor([0, 1]))


def batch() -> Batch:
    sizes = [(4, 6), (2, 8)]
    samples = [(torch.full((3, h, w), 9, dtype=torch.uint8), Targets.empty(), Frame(i, "", (h, w)))
               for i, (h, w) in enumerate(sizes)]  # fmt: skip
    return collate(samples)


def test_images_are_padded_right_and_bottom():
    made = batch()
    assert made.images.shape == (2, 3, 4, 8) and made.images.dtype == torch.uint8 and len(made) == 2
    assert (made.images == 9).all(1).equal(~made.padding_mask)
    assert valid_sizes(made.padding_mask).tolist() == [[4, 6], [2, 8]]
    assert [f.id for f in made.frames] == [0, 1]


def test_moving_a_batch_moves_every_tensor():
    moved = batch().to("meta")
    assert moved.images.is_meta and moved.padding_mask.is_meta and moved.targets[1].boxes.is_meta
    assert moved.frames[1].size == (2, 8)


def test_moving_targets_keeps_their_seed():
    assert Targets(BOXES, torch.tensor([0, 1]), seed=3).to("meta").seed == 3


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"size": (64, 96)}, [(64, 96), (64, 96)]),
        ({"short_side": 800, "max_side": 1333}, [(750, 1333), (1066, 800)]),
        ({"short_side": 360}, [(360, 640), (480, 360)]),
    ],
)
def test_size_rules(rule, expected):
    preprocessing = Preprocessing(**rule)
    assert [preprocessing.target_size(720, 1280), preprocessing.target_size(640, 480)] == expected


@pytest.mark.parametrize(
    ("image", "expected"),
    [((480, 640), (800, 1066)), ((427, 1000), (569, 1332)), ((1000, 100), (1330, 133)), ((100, 997), (134, 1335))],
)
def test_sizes_are_cut_off_as_official_dino_does(image, expected):
    assert Preprocessing(short_side=800, max_side=1333).target_size(*image) == expected


def test_an_image_never_shrinks_to_nothing():
    assert Preprocessing(short_side=32, max_side=32).target_size(1, 1000) == (1, 32)


@pytest.mark.parametrize("rule", [{}, {"size": (1, 1), "short_side": 3}])
def test_exactly_one_size_rule_is_given(rule):
    with pytest.raises(ValueError, match="either size or short_side"):
        Preprocessing(**rule)


def test_normalising_leaves_padding_at_zero_whatever_it_held():
    made, preprocessing = batch(), Preprocessing(size=(4, 8), mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    made.images[:, :, 3, 7] = 200
    out = preprocessing.normalise(made.images, made.padding_mask)
    assert out.dtype == torch.float32
    torch.testing.assert_close(
        out[0, :, 0, 0], (torch.full((3,), 9 / 255) - torch.tensor([0.5, 0.25, 0])) / torch.tensor([0.5, 1, 2])
    )
    assert not out.masked_select(made.padding_mask[:, None]).any()
