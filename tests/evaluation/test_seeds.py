import numpy as np
import pytest

from cahqp.evaluation.bootstrap import Groups
from cahqp.evaluation.matching import ClassMatches, Matches
from cahqp.evaluation.seeds import Draws

COUNT = 12


def found(hits):
    """One object in each of twelve recordings, of which some were found."""
    rows = np.arange(COUNT)
    one = ClassMatches(np.linspace(0.9, 0.1, COUNT), np.isin(rows, hits), rows, np.ones(COUNT, np.int64))
    return Matches(("car",), (one,))


def draws(shared=False, **arms):
    seeds = len(next(iter(arms.values())))
    groups = [Groups("recordings", np.arange(COUNT), COUNT)] * seeds
    return Draws({name: [found(range(h)) for h in hits] for name, hits in arms.items()}, groups, shared)


def test_a_model_is_not_ahead_of_itself():
    interval = draws(a=[4, 6], b=[4, 6]).difference("a", "b")
    assert (interval.value, interval.low, interval.high) == (0, 0, 0)
    assert not interval.excludes_zero


def test_a_large_gain_on_every_seed_excludes_zero():
    interval = draws(a=[10, 11, 10], b=[3, 4, 3]).difference("a", "b")
    assert interval.low > 0.3
    assert interval.excludes_zero


def test_seeds_that_disagree_do_not():
    assert not draws(a=[10, 2], b=[2, 10]).difference("a", "b").excludes_zero


def test_arms_are_equivalent_if_the_90_percent_interval_lies_within_the_margin():
    interval = draws(a=[6, 7, 6, 7], b=[6, 6, 7, 7]).difference("a", "b")
    half = interval.high - interval.value
    assert 0 < interval.half_90 < half
    assert interval.equivalent(abs(interval.value) + interval.half_90 + 1e-9)
    assert not interval.equivalent(abs(interval.value) + interval.half_90 - 1e-9)
    assert not draws(a=[6, 6], b=[6, 6]).difference("a", "b").equivalent(1.0)  # two seeds are no evidence


def test_seed_noise_widens_the_interval():
    def width(*hits):
        interval = draws(a=list(hits), b=[1, 1, 1]).difference("a", "b")
        return interval.high - interval.low

    assert width(2, 6, 10) > 1.3 * width(6, 6, 6)


@pytest.mark.parametrize(("seeds", "shared"), [(2, False), (3, False), (5, False), (3, True)])
def test_few_intervals_exclude_zero_without_a_difference(seeds, shared, monkeypatch):
    def mean(values, times):
        return float(np.average(values, weights=times))

    monkeypatch.setattr("cahqp.evaluation.seeds._ap50", mean)  # of recordings that are known at once
    monkeypatch.setattr("cahqp.evaluation.seeds.DRAWS", 50)
    random, groups, wrong = np.random.default_rng(0), [Groups("recordings", np.arange(20), 20)] * seeds, 0
    for _ in range(200):
        noise = random.normal(0, 0.03, (1 if shared else seeds, 20)) + random.normal(0, 0.02, (seeds, 1))
        found = Draws({"a": list(0.5 + noise), "b": [np.full(20, 0.5)] * seeds}, groups, shared)
        wrong += found.difference("a", "b").excludes_zero
    assert wrong <= 18  # 5 % of 200, and what chance adds


def test_the_gap_is_a_ratio_of_mean_gains():
    closed = draws(start=[2, 4], arm=[5, 4], end=[4, 10]).closed("arm", "start", "end")
    values = {
        name: np.mean(draws(x=hits).per_seed("x")) for name, hits in {"s": [2, 4], "a": [5, 4], "e": [4, 10]}.items()
    }
    assert closed.value == pytest.approx((values["a"] - values["s"]) / (values["e"] - values["s"]))


def test_an_end_that_is_not_ahead_leaves_no_gap_to_close():
    found = draws(start=[8, 8], arm=[6, 6], end=[4, 4], same=[8, 8])
    assert found.closed("arm", "start", "end") is None
    assert found.closed("arm", "start", "same") is None


def test_draws_without_a_gap_leave_the_share_a_finite_interval():
    # Of the draws many miss the one recording in which the end is ahead of the start.
    found = draws(start=[3], arm=[5], end=[4]).closed("arm", "start", "end")
    assert np.isfinite([found.value, found.low, found.high]).all()
    assert found.low < found.value < found.high


def test_objects_that_no_seed_has_are_no_difference():
    nothing = Matches(("car",), (ClassMatches(np.zeros(0), np.zeros(0, bool), np.zeros(0, int), np.zeros(COUNT, int)),))
    found = Draws({"a": [nothing], "b": [nothing]}, [Groups("recordings", np.arange(COUNT), COUNT)], shared=False)
    assert found.difference("a", "b") is None
    assert found.closed("a", "b", "a") is None


@pytest.mark.parametrize(("seeds", "shared", "known"), [(1, False, False), (3, True, False), (3, False, True)])
def test_one_group_has_no_interval_but_that_of_seeds_with_frames_of_their_own(seeds, shared, known):
    arms = {"a": [found(range(n)) for n in range(4, 4 + seeds)], "b": [found([0])] * seeds}
    of = Draws(arms, [Groups("blocks", np.zeros(COUNT, int), 1)] * seeds, shared)
    interval = of.difference("a", "b")
    assert (interval is not None) == known
    assert interval is None or interval.low < interval.value < interval.high


def test_intervals_of_one_seed_hold_for_few_recordings(monkeypatch):
    monkeypatch.setattr("cahqp.evaluation.seeds._ap50", lambda values, times: float(np.average(values, weights=times)))
    random, wrong = np.random.default_rng(0), 0
    for _ in range(300):
        of = Draws({"a": [random.normal(0, 1, 5)], "b": [np.zeros(5)]}, [Groups("blocks", np.arange(5), 5)], True)
        interval = of.difference("a", "b")
        wrong += interval.low > 0 or interval.high < 0
    assert wrong <= 24  # 5 % of 300, and what chance adds; by 1.96 standard deviations it is 50


def test_frames_that_all_seeds_share_are_drawn_once():
    def width(shared):
        interval = draws(shared, a=[6] * 8, b=[0] * 8).difference("a", "b")
        return interval.high - interval.low

    # Eight seeds with recordings of their own average the recordings' noise away; shared ones do not.
    assert width(shared=True) > 2 * width(shared=False)
