from collections import Counter
from itertools import chain

import pytest

from cahqp.data.samplers import Order, contiguous_batches
from cahqp.errors import DataError


def keys(order, epochs):
    return [key for epoch in range(epochs) for batch in order.batches(epoch * len(order)) for key in batch]


def test_the_order_is_a_function_of_seed_and_place_alone():
    order = Order(10, 2, seed=3)
    later = list(order.batches(10))
    assert list(Order(10, 2, seed=3).batches(10)) == later
    assert list(Order(10, 2, seed=4).batches(10)) != later


def test_every_pass_has_every_frame_in_a_new_order():
    passes = [[index for number, index in keys(Order(10, 2), 3) if number == wanted] for wanted in range(3)]
    assert all(sorted(indices) == list(range(10)) for indices in passes)
    assert passes[0] != passes[1] != passes[2]


def test_no_frame_is_dropped_at_the_end_of_an_epoch():
    order = Order(10, 4)
    assert len(order) == 2
    assert Counter(index for _, index in keys(order, 5)) == dict.fromkeys(range(10), 4)


@pytest.mark.parametrize("batches", [1, 13])
def test_epochs_may_be_shorter_or_longer_than_the_set(batches):
    seen = keys(Order(10, 4, batches=batches), 10)
    assert len(seen) == len(set(seen)) == 40 * batches
    counts = Counter(index for _, index in seen)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_an_epoch_goes_on_where_it_was_left():
    order = Order(20, 3, seed=1)
    assert list(order.batches(2))[: len(order) - 2] == list(order.batches(0))[2:]


def test_two_ranks_see_the_halves_of_what_one_sees():
    whole = list(Order(20, 6, seed=5).batches(7))
    halves = [list(Order(20, 3, seed=5, rank=rank, world_size=2).batches(7)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_a_curriculum_begins_with_the_easiest():
    order = Order(10, 2, batches=5, easiness=[*range(10)], curriculum=[0.3, 0.3, 0.6, 1.0])
    pools = [{i for batch in order.batches(e * 5) for _, i in batch} for e in range(6)]
    assert pools[0] == pools[1] == {7, 8, 9}
    assert pools[2] == {4, 5, 6, 7, 8, 9}
    assert pools[3] == pools[5] == set(range(10))
    assert len(set(keys(order, 6))) == 60


def test_too_few_frames_for_a_step_are_told():
    with pytest.raises(DataError, match=r"5 frames are too few for one step of 6 \(batch size 3 on 2 devices\)"):
        Order(5, 3, world_size=2)
    with pytest.raises(DataError, match="0 frames"):
        Order(0, 3, batches=4)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("frames", [5, 7, 16])
def test_held_out_frames_come_once_in_equally_many_batches(frames, batch_size, world_size):
    parts = [contiguous_batches(frames, batch_size, rank, world_size) for rank in range(world_size)]
    assert list(chain(*chain(*parts))) == list(range(frames))
    assert len({len(part) for part in parts}) == 1
    assert all(0 < len(batch) <= batch_size + 1 for part in parts for batch in part)


def test_fewer_held_out_frames_than_ranks_are_refused():
    with pytest.raises(DataError, match="2 held-out frames cannot be shared between 3 devices"):
        contiguous_batches(2, 4, 0, 3)


def test_the_control_of_a_curriculum_draws_the_same_frames_as_often_but_mixed():
    easiness, stages = list(range(20)), [0.2, 0.5, 1.0]
    staged, mixed = (Order(20, 4, batches=4, easiness=easiness, curriculum=stages, mixed=m) for m in (False, True))
    assert sorted(keys(staged, 3)) == sorted(keys(mixed, 3))
    assert min(index for _, index in keys(mixed, 1)) < 16 == min(index for _, index in keys(staged, 1))
    assert list(staged.batches(12)) == list(mixed.batches(12))


def test_ranks_share_a_mixed_curriculum_too():
    given = {"batches": 4, "easiness": list(range(20)), "curriculum": [0.5, 1.0], "mixed": True}
    whole = list(Order(20, 4, **given).batches(2))
    halves = [list(Order(20, 2, rank=rank, world_size=2, **given).batches(2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
