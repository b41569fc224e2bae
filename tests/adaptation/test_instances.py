import pytest
import torch

from cahqp.adaptation.instances import InstanceAlignment, box_masks, instance_features, instance_masks
from cahqp.errors import ConfigError
from cahqp.frame import Frame
from cahqp.structures import Targets

IMAGE = (64, 96)  # Cells are 16 px on the first level and 32 px on the second.
each_unit = pytest.mark.parametrize("unit", ["token", "instance"])


def boxes(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).float().reshape(-1, 4)


def targets(*rows: list[float], weight: float = 1.0) -> Targets:
    count = len(rows)
    return Targets(boxes(*rows), torch.zeros(count, dtype=torch.long), torch.full((count,), weight))


TWO = [targets([0, 0, 40, 40], [50, 20, 90, 60]), targets([5, 5, 30, 60])]


def masks_of(features, *rows):
    """The masks of the second image, which has padding; the first has no box."""
    return box_masks([boxes(), boxes(*rows)], IMAGE, features.spatial_shapes, features.padding)[1]


def alignment(unit: str, **settings) -> InstanceAlignment:
    torch.manual_seed(1)
    return InstanceAlignment(8, 2, unit, hidden=16, **settings)


def test_a_token_counts_by_the_area_of_its_cell_that_the_box_covers(features):
    fine = masks_of(features, [8, 16, 32, 32])[0, :24].reshape(4, 6)
    assert fine[1, :2].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert fine.count_nonzero() == 2


def test_every_instance_has_mass_one_on_every_level_however_small_or_outside(features):
    masks = masks_of(features, [0, 0, 60, 60], [3, 3, 3.5, 4], [20, 20, 20, 20], [70, 5, 90, 9], [500, 0, 600, 9])
    torch.testing.assert_close(masks[:, :24].sum(1), torch.ones(5))
    torch.testing.assert_close(masks[:, 24:].sum(1), torch.ones(5))
    assert not masks[:, features.padding[1]].any()


def test_boxes_without_an_unpadded_cell_fall_to_the_nearest(features):
    point, far = masks_of(features, [20, 36, 20, 36], [70, 5, 90, 9])[:, :24].reshape(2, 4, 6)
    assert point[2, 1] == 1
    assert far[0, 3] == 1


def test_masks_carry_the_weights_and_are_zero_without_boxes(features):
    rows = [boxes([0, 0, 40, 40], [50, 20, 60, 60]), boxes()]
    mask = instance_masks(rows, [torch.tensor([0.5, 0.25]), torch.zeros(0)], IMAGE, [(4, 6), (2, 3)], features.padding)
    assert mask[:, :24].sum(1).tolist() == pytest.approx([0.75, 0])
    assert mask[:, 24:].sum(1).tolist() == pytest.approx([0.75, 0])


@each_unit
def test_memory_gets_the_reversed_gradient_and_discriminators_do_not(unit, features):
    module = alignment(unit)

    def grads(scale):
        return torch.autograd.grad(
            module(features, TWO, IMAGE, 1, scale)[0], [features.encoder[-1], *module.parameters()]
        )

    (plain, *learned), (turned, *learned_too) = grads(-1.0), grads(0.5)
    assert plain.any()
    torch.testing.assert_close(turned, -0.5 * plain)
    torch.testing.assert_close(learned, learned_too)
    assert all(grad.any() for grad in learned)


@each_unit
def test_only_tokens_under_boxes_count(unit, features):
    module = alignment(unit)
    loss, *_ = module(features, TWO, IMAGE, 1)
    (grad,) = torch.autograd.grad(loss, features.encoder[-1])
    mask = instance_masks([t.boxes for t in TWO], [t.weights for t in TWO], IMAGE, [(4, 6), (2, 3)], features.padding)
    assert torch.equal(grad.any(-1), mask > 0)


@each_unit
def test_padding_has_no_influence(unit, features):
    module = alignment(unit)
    calm, wild = (module(features.with_padded(v), TWO, IMAGE, 1)[0] for v in (0.0, torch.nan))
    assert torch.equal(calm, wild)


def test_padding_has_no_influence_on_the_mean_token_of_a_box(features):
    found = [[t.boxes for t in TWO], IMAGE, features.spatial_shapes, features.padding]
    calm, wild = (instance_features(features.with_padded(v).encoder[-1], *found) for v in (0.0, torch.nan))
    assert torch.equal(calm, wild)


@each_unit
@pytest.mark.parametrize("empty", [0, 1])
def test_images_without_boxes_leave_the_others_loss_and_keep_the_graph(unit, empty, features):
    module, some = alignment(unit), list(TWO)
    some[empty] = Targets.empty()
    loss, accuracy, _ = module(features, some, IMAGE, 0)
    (grad,) = torch.autograd.grad(loss, features.encoder[-1])
    assert loss > 0 and not accuracy["instance"].isnan()
    assert not grad[empty].any() and grad[1 - empty].any()


@each_unit
def test_a_batch_without_boxes_costs_nothing_and_every_parameter_gets_a_zero_gradient(unit, features):
    module = alignment(unit)
    loss, accuracy, _ = module(features, [Targets.empty(), Targets.empty()], IMAGE, 0)
    loss.backward()
    assert loss == 0 and accuracy["instance"].isnan()
    assert all(p.grad is not None and not p.grad.any() for p in [features.encoder[-1], *module.parameters()])


@each_unit
def test_large_boxes_and_small_ones_count_alike(unit, features):
    module = alignment(unit, temporal=False)
    large, small = targets([0, 0, 96, 64]), targets([16, 16, 20, 20])
    none = Targets.empty()
    both = Targets(torch.cat([large.boxes, small.boxes]), torch.zeros(2, dtype=torch.long))
    losses = [module(features, [t, none], IMAGE, 1)[0] for t in (large, small, both)]
    torch.testing.assert_close(losses[2], (losses[0] + losses[1]) / 2)


@each_unit
def test_a_box_counts_by_its_weight(unit, features):
    module, none = alignment(unit, temporal=False), Targets.empty()
    rows = [0, 0, 32, 32], [32, 32, 64, 64]
    a, b = (module(features, [targets(row), none], IMAGE, 1)[0] for row in rows)
    weighted = Targets(boxes(*rows), torch.zeros(2, dtype=torch.long), torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(module(features, [weighted, none], IMAGE, 1)[0], 0.75 * a + 0.25 * b)


def frames(*times: float | None) -> list[Frame]:
    return [Frame(n, f"{n}.jpg", IMAGE, "north", "monday", n, t) for n, t in enumerate(times)]


def test_instance_features_are_drawn_towards_their_tracks_past(features):
    module = alignment("instance", momentum=0.75)
    seen = []
    module.discriminators[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    module(features, TWO, IMAGE, 1, frames=frames(0.0, 50.0))
    module.commit()
    past = seen[0]
    features.encoder[-1] = features.encoder[-1] + 1
    module(features, TWO, IMAGE, 1, frames=frames(1.0, 51.0))
    torch.testing.assert_close(seen[1], past + 0.25)


def test_token_weights_are_drawn_towards_their_tracks_past(features):
    module = alignment("token", momentum=0.5)
    row = [0, 0, 32, 32]
    other = [targets([32, 32, 64, 64])]
    module(features, [targets(row), *other], IMAGE, 1, frames=frames(0.0, 50.0))
    module.commit()
    steady, *_ = module(features, [targets(row, weight=0.5), *other], IMAGE, 1, frames=frames(1.0, 51.0))
    plain = alignment("token", temporal=False)
    torch.testing.assert_close(steady, plain(features, [targets(row, weight=0.75), *other], IMAGE, 1)[0])


@each_unit
def test_labels_that_always_weigh_one_are_remembered_as_features_alone(unit, features):
    module = alignment(unit)
    module(features, TWO, IMAGE, 0, 1.0, frames(0.0, 1.0), None, True)
    module.commit()
    assert (len(module.bank) > 0) == (unit == "instance")
    module(features, [targets([0, 0, 32, 32], weight=0.5), TWO[1]], IMAGE, 0, 1.0, frames(0.0, 1.0), None, True)
    module.commit()
    assert len(module.bank) > 0


@each_unit
def test_the_bank_travels_in_the_state(unit, features):
    first, second = alignment(unit), alignment(unit)
    first(features, TWO, IMAGE, 1, frames=frames(0.0, 50.0))
    first.commit()
    second.load_state_dict(first.state_dict())
    features.encoder[-1] = features.encoder[-1] * 2
    weak = [targets([0, 0, 40, 40], [50, 20, 90, 60], weight=0.3), TWO[1]]
    losses = [m(features, weak, IMAGE, 1, frames=frames(1.0, 51.0))[0] for m in (first, second)]
    assert torch.equal(*losses)
    assert losses[0] != alignment(unit)(features, weak, IMAGE, 1)[0]


def test_unknown_unit_is_refused():
    with pytest.raises(ConfigError, match="token, instance"):
        InstanceAlignment(8, 2, "pixel")
