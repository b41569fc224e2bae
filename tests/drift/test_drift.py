import itertools
import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cahqp.__main__ import main
from cahqp.drift.command import describe, first_run, judge
from cahqp.drift.faults import Usual, fault
from cahqp.drift.mmd import Reference, blocks, distance, fit_scale
from cahqp.drift.options import DriftSettings
from cahqp.drift.signals import PLAIN, join_signals, read_signals, write_signals
from cahqp.errors import ConfigError, DataError

stream = runpy.run_path(str(Path(__file__).with_name("signal_streams.py")))["stream"]
QUICK = DriftSettings(window=12, block=3, permutations=199)
USUAL = {"day": stream(120)}


def verdict(frames, known=None, settings=QUICK):
    return judge(known or USUAL, [frames], settings)["cameras"]["north"]


def test_distance_of_like_sets_is_about_zero_and_grows_with_the_shift():
    day = stream(300, correlation=0.0)
    scale = fit_scale(day.features)
    found = [distance(day.features, stream(300, seed=1, correlation=0.0, shift=s).features, scale) for s in (0, 0.5, 1)]
    assert abs(found[0]) < 0.01
    assert found[0] < found[1] < found[2]


def test_distance_is_the_mean_over_pairs_of_frames():
    random = np.random.default_rng(0)
    first, second = (random.normal(size=(n, 2)).astype(np.float32) for n in (3, 4))
    scale = fit_scale(first)

    def k(a, b):
        squared = (((a - b) / scale.spread) ** 2).sum()
        return np.mean([np.exp(-squared / (f * scale.bandwidth)) for f in (0.25, 0.5, 1, 2, 4)])

    within = [np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]) for x in (first, second)]
    between = np.mean([k(a, b) for a in first for b in second])
    assert distance(first, second, scale) == pytest.approx(sum(within) - 2 * between)


def test_no_block_reaches_over_two_recordings():
    assert blocks(["a"] * 5 + ["b"] * 3, 2).tolist() == [0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(("correlation", "usual"), [(0.8, 120), (0.95, 240), (0.98, 480)])
def test_a_thousand_windows_without_drift_give_few_alarms(correlation, usual):
    alarms = []
    for seed in range(5):
        frames = stream(usual + 200 * 12, seed=seed, correlation=correlation).features
        reference = Reference(frames[:usual], blocks([""] * usual, 3), 4, margin=1.0)
        random, numbers = np.random.default_rng(seed), blocks([""] * 12, 3)
        windows = frames[usual:].reshape(200, 12, -1)
        over = [reference.test(window, numbers, random, 199).over(0.02) for window in windows]
        alarms += [first and second for first, second in itertools.pairwise(over)]
    assert np.mean(alarms) <= 0.05


def test_waves_would_alarm_a_test_that_permutes_frames():
    frames = stream(600, seed=3, correlation=0.95).features
    plain = Reference(frames[:120], np.arange(120), 12, margin=0.0)
    random = np.random.default_rng(0)
    p = [plain.test(w, np.arange(12), random, 99).p for w in frames[120:].reshape(-1, 12, frames.shape[1])]
    assert np.mean(np.array(p) <= 0.02) > 0.3


@pytest.mark.parametrize("change", [{"shift": 2.5}, {"brightness": 40.0}, {"detections": 1.0}, {"moved": 0.3}])
def test_a_change_is_found_within_five_windows(change):
    found = verdict(join_signals([stream(36, seed=5), stream(60, seed=6, **change)]))
    assert found["verdict"] == "drift"
    assert 3 <= found["since"] <= 6


@pytest.mark.parametrize(("usual", "told_so"), [(108, True), (120, False)])
def test_an_alarm_on_a_short_reference_says_so(usual, told_so):
    found = judge({"day": stream(usual)}, [stream(60, seed=6, shift=2.5)], QUICK)
    (line, *_) = describe(found)
    assert line.startswith("north: drift since window 1 of 5; nearest reference: day")
    assert (", of 9 windows" in line) == told_so


def test_the_same_again_is_steady():
    assert verdict(stream(96, seed=7))["verdict"] == "steady"


def test_drift_is_from_everything_known():
    night = {"shift": 2.5, "brightness": 40.0}
    known = {**USUAL, "night": stream(120, seed=8, **night)}
    found = verdict(stream(48, seed=9, **night), known)
    assert (found["verdict"], found["nearest"]) == ("steady", "night")


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ({"brightness": 3.0, "contrast": 1.0}, "black"),
        ({"contrast": 0.5}, "flat"),
        ({"change": 0.0}, "frozen"),
    ],
)
def test_faults_are_not_drift(broken, named):
    found = judge(USUAL, [join_signals([stream(24, seed=5), stream(36, seed=6, **broken)])], QUICK)
    assert (found["cameras"]["north"]["verdict"], found["cameras"]["north"]["fault"]) == ("fault", named)
    assert found["groups"] == []
    assert not found["adapt"]


def test_unreadable_frames_are_a_fault():
    frames = stream(36, seed=5)
    dead = replace(
        frames, readable=np.arange(36) < 10, plain=np.where(np.arange(36)[:, None] < 10, frames.plain, np.nan)
    )
    assert verdict(dead)["fault"] == "unreadable"


def test_a_camera_that_sends_nothing_is_silent():
    known = {"day": join_signals([stream(120), stream(120, camera="south", seed=2)])}
    assert judge(known, [stream(36, seed=3)], QUICK)["silent"] == ["south"]


def test_an_empty_street_is_not_frozen():
    quiet = stream(24, change=0.4)
    assert fault(quiet, [Usual(0.5, 1.0)]) is None


@pytest.mark.parametrize(("seconds", "named"), [(1.0, "frozen"), (60.0, None), (None, None)])
def test_changes_are_compared_between_frames_that_are_as_far_apart(seconds, named):
    quiet = stream(24, change=0.2)  # a frame a second
    assert fault(quiet, [Usual(4.0, seconds)]) == named


def test_a_reference_may_list_its_frames_in_any_order():
    def cameras(seed):
        return [stream(36, camera=f"c{n}", seed=seed + n, correlation=0.9) for n in range(6)]

    whole = join_signals(cameras(0))
    mixed = whole.take(np.random.default_rng(0).permutation(len(whole)))
    found = [judge({"day": known}, cameras(50), QUICK)["cameras"] for known in (whole, mixed)]
    assert found[0] == found[1]


def test_features_of_another_model_with_as_many_values_are_refused():
    known, seen = (replace(stream(120, seed=n), model=name) for n, name in enumerate("ab"))
    with pytest.raises(DataError, match="different models"):
        judge({"day": known}, [seen], QUICK)


def test_cameras_that_change_alike_are_one_group():
    names = ("a", "b", "c")
    known = {"day": join_signals([stream(120, camera=n, seed=i) for i, n in enumerate(names)])}
    shifts = {"a": {"shift": 2.5}, "b": {"shift": 2.2}, "c": {"brightness": 20.0}}
    now = [stream(48, camera=n, seed=10 + i, **shifts[n]) for i, n in enumerate(names)]
    assert judge(known, now, QUICK)["groups"] == [["a", "b"], ["c"]]


def test_few_frames_say_so():
    assert verdict(stream(5))["verdict"] == "too few frames"
    assert verdict(stream(13, shift=2.5))["verdict"] == "too few frames"  # one window, where two make drift
    with pytest.raises(DataError, match="at least 36"):
        verdict(stream(36), {"day": stream(20)})


def test_a_short_round_is_no_reference_and_stops_nothing():
    known = {**USUAL, "night": stream(20, seed=8, shift=2.5)}
    found = judge(known, [stream(48, seed=9, shift=2.5)], QUICK)
    assert found["short"] == ["night"]
    assert found["cameras"]["north"]["verdict"] == "drift"
    assert found["cameras"]["north"]["nearest"] == "day"


def test_a_camera_with_few_frames_is_compared_with_all_cameras():
    parts = [stream(24, camera=name, seed=20 + number, shift=2.5) for number, name in enumerate(("north", "a", "b"))]
    found = judge({**USUAL, "night": join_signals(parts)}, [stream(48, seed=9, shift=2.5)], QUICK)
    assert (found["cameras"]["north"]["verdict"], found["short"]) == ("steady", [])


def test_confirmation():
    assert first_run([True, False, True, True], 2) == 2
    assert first_run([True, False, True], 2) is None


@pytest.mark.parametrize("wrong", [{"window": 8}, {"alpha": 0.0}, {"confirm": 0}, {"permutations": 20}])
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError, match=f"--{next(iter(wrong))}"):
        DriftSettings(**wrong)


def test_files_say_the_same_again(tmp_path):
    signals = stream(7)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        write_signals(tmp_path / place, signals, "images")
    read = read_signals(tmp_path / "a")
    assert (read.features == signals.features).all()
    assert (read.names, read.times, read.root) == (signals.names, signals.times, tmp_path / "a/images")
    assert (tmp_path / "a/features.npz").read_bytes() == (tmp_path / "b/features.npz").read_bytes()


def test_features_of_another_model_are_refused(tmp_path):
    other = replace(stream(120), features=np.zeros((120, 3), np.float32))
    with pytest.raises(DataError, match="different models"):
        verdict(stream(24), {"day": other})


def test_the_command(tmp_path, capsys):
    for name, signals in {"day": stream(120), "now": stream(48, seed=2, shift=2.5)}.items():
        (tmp_path / name).mkdir()
        write_signals(tmp_path / name, signals, None)
    flags = ["--window=12", "--block=3", "--permutations=199", f"--output={tmp_path / 'drift'}"]
    given = ["drift", "--reference", f"day={tmp_path / 'day'}", "--frames", str(tmp_path / "now"), *flags]
    assert main(given) == 0
    assert "north: drift since window 1 of 4; nearest reference: day" in capsys.readouterr().out
    assert json.loads((tmp_path / "drift/drift.json").read_text())["groups"] == [["north"]]
    assert main([*given, "--margin=2"]) == 1
    assert "belongs to another run" in capsys.readouterr().err


def test_features_of_frames(recordings, student, tmp_path, capsys):
    day = recordings["day"]
    assert main(["features", f"--weights={student}", "--frames", str(day), f"--output={tmp_path / 'f'}"]) == 0
    signals = read_signals(tmp_path / "f")
    assert len(signals) == 6
    assert len(signals.by_camera()) == 2
    assert signals.root.resolve() == (day.parent / "images").resolve()
    assert (signals.root / signals.names[0]).is_file()
    change = signals.plain[:, PLAIN.index("change")]
    assert np.isnan(change).tolist() == [True, False, False, True, False, False]
    night = ["features", f"--weights={student}", "--frames", str(recordings["night"]), f"--output={tmp_path / 'n'}"]
    assert main(night) == 0
    assert read_signals(tmp_path / "n").plain[:, 0].mean() < signals.plain[:, 0].mean() - 20
