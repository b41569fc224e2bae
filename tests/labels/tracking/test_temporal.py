import json

import numpy as np
import pytest

from cahqp.frame import Frame
from cahqp.labels.apply_rules import apply_rules
from cahqp.labels.calibration.thresholds import NEVER
from cahqp.labels.candidates import Candidates, encode, from_record
from cahqp.labels.options import LabelOptions
from cahqp.labels.rules import Rules
from cahqp.labels.shards.shards import LabelShards
from cahqp.labels.tracking.linker import Sightings, link
from cahqp.labels.tracking.temporal import (
    FILLED,
    FLICKER,
    STANDING,
    STATIC,
    WEAK_TRACK,
    TemporalSettings,
    smooth,
    too_sparse,
    why_not,
)

RATE = 0.2


def car_at(number, y=20.0, speed=6.0):
    return [10 + speed * number, y, 40 + speed * number, y + 20]


def recording(count, *objects, rate=RATE):
    """Return frames and class evidence of objects: a function of the frame number to (box, sure, label) or nothing."""
    frames, classes = [], []
    for number in range(count):
        seen = [found for find in objects if (found := find(number)) is not None]
        boxes = np.array([box for box, _, _ in seen], np.float64).reshape(-1, 4)
        sure = np.array([value for _, value, _ in seen])
        labels = np.array([label for _, _, label in seen], np.int64)
        evidence = np.zeros((len(seen), 2))
        evidence[np.arange(len(seen)), labels] = sure
        frames.append(Sightings(number * rate, boxes, sure, labels))
        classes.append(evidence)
    return frames, classes


def tracked(count, *objects, **settings):
    return smooth(*recording(count, *objects), TemporalSettings(**settings))[0]


def car(number):
    return car_at(number), 1.5, 0


def reasons(found):
    return [frame.reasons for frame in found]


def test_one_object_is_one_track():
    found = tracked(10, car)
    assert {int(frame.tracks[0]) for frame in found} == {0}
    assert reasons(found) == [("",)] * 10
    assert all(frame.steady[0] == 1 for frame in found)


def test_two_objects_that_cross_keep_their_tracks():
    frames, _ = recording(20, car, lambda n: ([130 - 6 * n, 32, 160 - 6 * n, 52], 1.5, 1))
    assert link(frames, 0.5) == 2
    assert all(frame.tracks[0] == frames[0].tracks[0] for frame in frames)


def test_a_gap_is_filled_on_the_line():
    found = tracked(10, lambda n: None if n in (4, 5) else car(n), max_gap=0.7)
    assert reasons(found)[4:6] == [(FILLED,)] * 2
    assert found[4].rows.tolist() == [-1]
    for number in (4, 5):
        assert np.abs(found[number].boxes[0] - car_at(number)).max() < 0.5
    assert found[3].steady[0] == pytest.approx(0.8)


def test_a_gap_that_is_too_long_is_not_filled():
    found = tracked(14, lambda n: None if 4 <= n <= 9 else car(n))
    assert [len(frame.reasons) for frame in found[4:10]] == [0] * 6


def test_a_flicker_is_dropped_unless_it_is_sure_or_at_the_border():
    def blink(at, sure):
        return lambda n: (car_at(0, y=60), sure, 0) if n == at else None

    assert reasons(tracked(10, car, blink(5, 1.2)))[5] == ("", FLICKER)
    assert reasons(tracked(10, car, blink(5, 2.5)))[5] == ("", "")
    assert reasons(tracked(10, car, blink(9, 1.2)))[9] == ("", "")


def test_a_weak_sighting_of_a_sure_track_is_believed_and_a_weak_track_is_not():
    found = tracked(10, lambda n: (car_at(n), 0.6 if n % 2 else 1.4, 0))
    assert all(frame.strength[0] >= 1 for frame in found)
    assert reasons(tracked(10, lambda n: (car_at(n), 0.8, 0))) == [(WEAK_TRACK,)] * 10


def test_a_track_that_stands_has_to_be_surer_than_one_that_moves():
    def stationary_weight(sure):
        return lambda n: ([100, 60, 130, 80], sure, 0)

    assert reasons(tracked(10, stationary_weight(1.5))) == [(STANDING,)] * 10
    assert reasons(tracked(10, stationary_weight(2.1))) == [("",)] * 10
    assert reasons(tracked(10, stationary_weight(1.5), stationary_weight=1.0)) == [("",)] * 10
    assert reasons(tracked(10, stationary_weight(0.9))) == [(WEAK_TRACK,)] * 10
    assert reasons(tracked(10, lambda n: (car_at(n), 0.95, 0))) == [("",)] * 10
    slow = tracked(10, lambda n: (car_at(n, speed=2.0), 1.5, 0))  # half its diagonal in all
    assert slow[0].strength[0] == pytest.approx(1.5 * (0.5 + 0.6 * 18 / np.hypot(30, 20)))


def test_the_class_is_voted_along_the_track():
    found = tracked(10, lambda n: (car_at(n), 1.5, int(n in (3, 6))))
    assert {int(frame.labels[0]) for frame in found} == {0}


def test_a_lamp_is_found_and_a_parked_car_is_not():
    def lamp(sure):
        return lambda n: ([100, 60, 110, 70], sure, 0)

    assert STATIC in reasons(tracked(60, car, lamp(1.2), static_seconds=10.0))[30]
    assert STATIC not in reasons(tracked(60, car, lamp(2.5), static_seconds=10.0))[30]
    assert STATIC not in reasons(tracked(60, car, lamp(1.2), static_seconds=0.0))[30]
    assert STATIC not in reasons(tracked(40, car, lamp(1.2), static_seconds=10.0))[30]


def test_trembling_boxes_are_smoothed():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 2, (20, 4))
    found = tracked(20, lambda n: ((np.array(car_at(n)) + noise[n]).tolist(), 1.5, 0))
    off = [np.abs(frame.boxes[0] - car_at(n)).mean() for n, frame in enumerate(found)]
    assert np.mean(off) < 0.75 * np.abs(noise).mean()


def test_boxes_beside_lost_frames_stay_where_they_are():
    frames, classes = recording(31, car, rate=0.04)
    kept = [n for n in range(31) if not 10 <= n < 21]
    found = smooth([frames[n] for n in kept], [classes[n] for n in kept], TemporalSettings())[0]
    assert len({int(frame.tracks[0]) for frame in found}) == 1  # the gap of 0.48 s did not part the track
    for number, frame in zip(kept, found, strict=True):
        np.testing.assert_allclose(frame.boxes[0], car_at(number), atol=1e-6)


def test_what_comes_in_before_a_long_gap_is_no_flicker():
    frames, classes = recording(20, lambda n: car(n) if n in (8, 9) else None)
    for frame in frames[10:]:
        frame.time += 3600
    found = smooth(frames, classes, TemporalSettings())[0]
    assert reasons(found)[8] == reasons(found)[9] == ("",)


def test_what_keeps_time_out_of_a_recording():
    size = (100, 200)
    fine = [(0.2 * n, size) for n in range(6)]
    assert why_not(fine) is None
    assert why_not([*fine, (None, size)]) == "frames without a time stamp"
    assert why_not([*fine, fine[-1]]) == "several frames with one time stamp"
    assert why_not(fine[:4]) == "fewer than five frames"
    assert why_not([*fine, (2.0, (50, 100))]) == "frames of several sizes"


def streets(count):
    """Return several cars on lanes of their own, entering at different times."""
    return [lambda n, k=k: (car_at((n + 7 * k) % 25, y=25.0 * k), 1.5, 0) for k in range(4)]


def test_frames_in_order_are_followed_and_shuffled_or_sparse_ones_are_not():
    frames, _ = recording(50, *streets(50))
    assert too_sparse(frames, 0.5) is None
    assert "too far apart" in str(too_sparse(frames, 0.1))  # others with frames as far apart cannot be followed
    assert "too few boxes" in str(too_sparse(frames, None))
    order = np.random.default_rng(0).permutation(50)
    shuffled = [Sightings(n * RATE, frames[m].boxes, frames[m].strength, frames[m].labels) for n, m in enumerate(order)]
    assert "too far apart, or in no order: 0.2 s" in str(too_sparse(shuffled, 0.5))
    assert "too far apart" in str(too_sparse(recording(200, *streets(200))[0][::11], 0.5))
    assert "too few boxes" in str(too_sparse(recording(50)[0], 0.5))


def test_candidates_are_kept_to_the_last_digit():
    """Rounded, a score just below a threshold would reach it with `--temporal` and not without."""
    score, box = float(np.float32(0.25957)), [[float(np.float32(1 / 3)), 2.0, 30.0, 40.0]]
    given = Candidates(np.array(box), np.array([score]), np.array([0]), np.array([1 / 3]))
    back = from_record(json.loads(encode(0, Frame(1, "1.jpg", (120, 240), "one", "one", 0, 0.0), given)))
    for name in ("boxes", "scores", "labels", "agreement"):
        assert np.array_equal(getattr(back, name), getattr(given, name))


CLASSES = ("car", "bus")


def shards_of(folder, frames, times=None, sizes=None):
    with LabelShards(folder, 0) as shards:
        for number, frame in enumerate(frames):
            time = number * RATE if times is None else times[number]
            size = (120, 240) if sizes is None else sizes[number]
            named = Frame(number + 1, f"{number}.jpg", size, "one", "one", number, time)
            found = Candidates(frame.boxes, frame.strength * 0.4, frame.labels)
            shards.append(encode(number, named, found))
    return folder


def refined(folder, name, temporal):
    rules = Rules(CLASSES, np.array([0.4, 0.4]), LabelOptions(temporal=temporal))
    found = apply_rules(folder, folder.parent / name, rules)
    lines = (folder.parent / name / "rank-00000.jsonl").read_text().splitlines()
    return found, sorted((json.loads(line) for line in lines), key=lambda record: record["position"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"times": [None] * 50}, "without a time stamp"),
        ({"times": list(np.random.default_rng(0).permutation(50) * RATE)}, "too far apart, or in no order"),
        ({"sizes": [(120, 240)] * 49 + [(240, 480)]}, "several sizes"),
    ],
)
def test_recordings_that_time_says_nothing_of_are_left_as_they_are(tmp_path, change, reason):
    folder = shards_of(tmp_path / "shards", recording(50, *streets(50))[0], **change)
    plain, expected = refined(folder, "plain", temporal=False)
    found, records = refined(folder, "timed", temporal=True)
    assert records == expected
    assert sum(len(record["kept"]) for record in records) == 200
    assert (found.recordings, plain.untracked) == (0, {})
    assert [count for told, count in found.untracked.items() if reason in told] == [1]


def test_a_recording_is_decided_over_time_and_twice_the_same(tmp_path):
    frames, _ = recording(50, *streets(50), lambda n: (car_at(0, y=98), 1.2, 1) if n == 20 else None)
    frames[30].boxes, frames[30].strength, frames[30].labels = np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)
    folder = shards_of(tmp_path / "shards", frames)
    found, records = refined(folder, "one", temporal=True)
    assert (found.recordings, found.untracked) == (1, {})
    assert len(records) == 50
    assert FLICKER in {box["reason"] for box in records[20]["rejected"]}
    assert {box["reason"] for box in records[30]["kept"]} == {FILLED}
    assert refined(folder, "two", temporal=True)[1] == records
    assert found.review.ranked()[0]["rank"] == 1


@pytest.mark.parametrize("ignore_share", [1.0, 0.6])
def test_a_class_that_is_to_have_no_labels_gets_none_from_tracks(ignore_share, tmp_path):
    sure = 0.98 / 0.4
    frames, _ = recording(10, lambda n: (car_at(n), sure, 0), lambda n: (car_at(n, 60), sure, 1))
    shards = shards_of(tmp_path / "shards", frames)
    rules = Rules(("car", "bus"), np.array([NEVER, 0.5]), LabelOptions(ignore_share=ignore_share, temporal=True))
    apply_rules(shards, tmp_path / "out", rules)
    records = [json.loads(line) for line in (tmp_path / "out" / "rank-00000.jsonl").open()]
    assert {box["label"] for record in records for box in record["kept"]} == {1}
    doubtful = [box["label"] for record in records for box in record["ignored"]]
    assert doubtful == ([0] * 10 if ignore_share < 1 else [])


def test_a_recording_with_nothing_on_it_is_left_alone(tmp_path):
    found, records = refined(shards_of(tmp_path / "shards", recording(10)[0]), "one", temporal=True)
    assert [record["kept"] for record in records] == [[]] * 10
    assert list(found.untracked) == ["too few boxes to tell whether frames follow each other"]


def test_a_long_recording_is_cut_into_even_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("cahqp.labels.apply_rules.BLOCK", 24)
    folder = shards_of(tmp_path / "shards", recording(50, *streets(50))[0])
    found, records = refined(folder, "one", temporal=True)
    assert (found.recordings, found.untracked) == (1, {})
    assert all("track_id" in box for record in records for box in record["kept"])


def test_a_threshold_of_zero_leaves_scores_as_they_are(tmp_path):
    folder = shards_of(tmp_path / "shards", recording(10, car, lambda n: (car_at(n, 60), 0.2, 1))[0])
    rules = Rules(CLASSES, np.array([0.4, 0.0]), LabelOptions(temporal=True))
    apply_rules(folder, tmp_path / "out", rules)
    records = [json.loads(line) for line in (tmp_path / "out" / "rank-00000.jsonl").open()]
    scores = [box["score"] for record in records for box in record["kept"] if box["label"] == 1]
    assert scores == pytest.approx([0.2 * 0.4 * 1.1] * 10, abs=1e-3)


@pytest.mark.parametrize("empty", [range(24), range(24, 48)])
def test_what_time_says_of_a_long_recording_is_counted_by_part(empty, tmp_path, monkeypatch):
    monkeypatch.setattr("cahqp.labels.apply_rules.BLOCK", 24)
    frames, nothing = recording(48, *streets(48))[0], recording(48)[0]
    folder = shards_of(tmp_path / "shards", [nothing[n] if n in empty else frames[n] for n in range(48)])
    found, _ = refined(folder, "one", temporal=True)
    assert found.tracks > 0
    assert (found.recordings, found.untracked) == (1, {})
    assert found.untracked_blocks == {"too few boxes to tell whether frames follow each other": 1}


def test_every_interval_is_asked_for_however_rare(tmp_path):
    frames = recording(8, *streets(8))[0]
    with LabelShards(tmp_path / "shards", 0) as shards:
        for number in range(70):
            for row, frame in enumerate(frames):
                time = row * (0.1 if number == 1 else RATE)
                named = Frame(8 * number + row + 1, f"{row}.jpg", (120, 240), "one", f"{number:03d}", row, time)
                found = Candidates(frame.boxes, frame.strength * 0.4, frame.labels)
                shards.append(encode(8 * number + row, named, found))
    found, _ = refined(tmp_path / "shards", "one", temporal=True)
    assert (found.recordings, found.untracked) == (70, {})
