import json
import time
from dataclasses import replace

import numpy as np
import pytest

from cahqp.errors import ConfigError, DataError
from cahqp.evaluation.bootstrap import group_frames, paired_bootstrap
from cahqp.evaluation.ground_truth import (
    GroundTruth,
    GroundTruthImage,
    ImagePredictions,
    Predictions,
    read_ground_truth,
)
from cahqp.evaluation.matching import ClassMatches, Matches, average_precisions
from cahqp.evaluation.metrics import average_precision, macro
from cahqp.evaluation.scoring import score

CLASSES = ("car", "bus")


def ground_truth(recordings=12, frames=5):
    images = []
    for number in range(recordings * frames):
        random = np.random.default_rng(number)
        corner = random.uniform(0, 100, (4, 2))
        box = np.concatenate([corner, corner + 20], 1)
        recording, frame = divmod(number, frames)
        images.append(GroundTruthImage(number, "", f"r{recording}", frame, box, np.arange(4) % 2, np.zeros(4, bool)))
    return GroundTruth(CLASSES, tuple(images))


def predictions(of, noise, seed=0):
    random = np.random.default_rng(seed)
    answers = {}
    for image in of.images:
        shaken = image.boxes + random.normal(0, noise, image.boxes.shape)
        answers[image.id] = ImagePredictions(shaken, random.random(len(shaken)), image.labels)
    return Predictions(of.classes, answers)


def matches(of, noise, seed=0):
    return average_precision(of, predictions(of, noise, seed)).matches


def test_counting_an_image_twice_equals_having_it_twice():
    of = ground_truth(4)
    times = np.random.default_rng(1).integers(0, 3, len(of.images))
    drawn = [image for image, count in zip(of.images, times, strict=True) for _ in range(count)]
    again = GroundTruth(of.classes, tuple(replace(image, id=number) for number, image in enumerate(drawn)))
    answers = predictions(of, 5).images
    repeated = Predictions(of.classes, {n: answers[image.id] for n, image in enumerate(drawn)})
    quick = macro(average_precisions(matches(of, 5), times))
    assert quick == pytest.approx(average_precision(again, repeated).ap50, abs=1e-9)


def test_recordings_are_drawn_where_there_are_enough():
    groups = group_frames(ground_truth(12))
    assert (groups.unit, groups.count) == ("recordings", 12)


def test_few_recordings_are_cut_into_contiguous_blocks():
    of = ground_truth(2, 45)
    groups = group_frames(of)
    assert (groups.unit, groups.count) == ("blocks", 20)
    assert (np.diff(groups.rows) >= 0).all()
    assert len(np.unique(groups.rows[:45])) == 10


@pytest.mark.parametrize(
    ("recordings", "frames", "count"), [(1, 22, 5), (1, 79, 19), (1, 500, 20), (3, 5, 3), (1, 3, 1)]
)
def test_neighbouring_frames_are_not_blocks_of_their_own(recordings, frames, count):
    groups = group_frames(ground_truth(recordings, frames))
    assert groups.count == count
    assert np.bincount(groups.rows).min() >= min(frames, 4)


def test_one_group_gives_no_interval():
    of = ground_truth(1, 3)
    found = paired_bootstrap(matches(of, 1), matches(of, 6), group_frames(of), seed=0, resamples=20)
    assert found.ap50 > 0
    assert (found.low, found.high) == (-1, 1)


def test_blocks_follow_the_frame_order_not_the_file_order():
    of = ground_truth(1, 40)
    backwards = replace(of, images=of.images[::-1])
    assert group_frames(backwards).rows.tolist() == group_frames(of).rows[::-1].tolist()


def test_a_clear_gain_is_clear():
    of = ground_truth()
    found = paired_bootstrap(matches(of, 1), matches(of, 6), group_frames(of), seed=0, resamples=200)
    assert 0 < found.low < found.ap50 < found.high
    assert found.ahead == 1


def test_a_model_is_not_ahead_of_itself():
    of = ground_truth()
    found = paired_bootstrap(matches(of, 5), matches(of, 5), group_frames(of), seed=0, resamples=50)
    assert (found.ap50, found.low, found.high, found.ahead) == (0, 0, 0, 0)


def test_equal_models_do_not_differ():
    of = ground_truth()
    found = paired_bootstrap(matches(of, 5, 1), matches(of, 5, 2), group_frames(of), seed=0, resamples=200)
    assert found.low < 0 < found.high


def test_the_seed_decides():
    of = ground_truth()
    pair = matches(of, 3), matches(of, 5)
    first, again, other = (paired_bootstrap(*pair, group_frames(of), seed=s, resamples=50) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_different_ground_truth_is_refused():
    with pytest.raises(DataError, match="same frames"):
        paired_bootstrap(
            matches(ground_truth(3), 1), matches(ground_truth(2), 1), group_frames(ground_truth(3)), seed=0
        )


def test_ground_truth_without_objects_is_refused():
    nothing = ClassMatches(np.zeros(0), np.zeros(0, bool), np.zeros(0, int), np.zeros(60, int))
    empty = Matches(CLASSES, (nothing, nothing))
    with pytest.raises(DataError, match="no object"):
        paired_bootstrap(empty, empty, group_frames(ground_truth()), seed=0)


def test_a_thousand_resamples_are_quick():
    of = ground_truth(20, 10)
    pair, started = (matches(of, 3), matches(of, 5)), time.process_time()
    paired_bootstrap(*pair, group_frames(of), seed=0)
    assert time.process_time() - started < 3


def test_score_has_the_documented_keys():
    of = ground_truth(3)
    models = {"old": {"target-test": predictions(of, 5)}, "new": {"target-test": predictions(of, 1)}}
    scores = score(models, {"target-test": of}, comparisons=[("new", "old")], resamples=20)
    entry = scores["models"]["new"]["target-test"]
    assert (entry["images"], sorted(entry["per_class"])) == (15, ["bus", "car"])
    gain = entry["ap50"] - scores["models"]["old"]["target-test"]["ap50"]
    assert scores["differences"][0]["ap50"] == pytest.approx(gain, abs=2e-6)


def test_score_measures_each_recording_alone():
    def only(image, part):
        return replace(image, boxes=image.boxes[part], labels=image.labels[part], ignore=image.ignore[part])

    parts = {"r0": slice(None), "r1": slice(None, None, 2), "r2": slice(0)}  # of the second recording cars alone
    of = ground_truth(3)
    of = replace(of, images=tuple(only(image, parts[image.recording]) for image in of.images))
    answers = predictions(of, 5)
    found = score({"a": {"t": answers}}, {"t": of})["models"]["a"]["t"]["per_recording"]
    assert list(found) == ["r0", "r1", "r2"]
    for name, objects in (("r0", 20), ("r1", 10)):
        alone = replace(of, images=tuple(image for image in of.images if image.recording == name))
        ap50 = average_precision(alone, answers).ap50
        assert found[name] == {"ap50": pytest.approx(ap50, abs=1e-6), "images": 5, "objects": objects}
        assert 0 < ap50 < 1
    assert found["r2"] == {"ap50": None, "images": 5, "objects": 0}


def test_score_counts_objects_of_other_classes():
    of = replace(ground_truth(1), left_out={"tram": 3})
    scores = score({"a": {"t": predictions(of, 1)}}, {"t": of})
    assert scores["models"]["a"]["t"]["left_out"] == {"tram": 3}


def test_comparing_an_unknown_model_is_refused():
    of = ground_truth(1)
    with pytest.raises(ConfigError, match="Cannot compare b: the models measured are a"):
        score({"a": {"t": predictions(of, 1)}}, {"t": of}, comparisons=[("a", "b")])


def test_folders_are_recordings_by_default(tmp_path):
    images = [{"id": n, "file_name": f"cam{n % 12}/{n:03d}.jpg"} for n in range(120)]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    found = read_ground_truth(tmp_path / "a.json")
    groups = group_frames(found)
    assert (groups.unit, groups.count) == ("recordings", 12)
    assert groups.rows.tolist() == [n % 12 for n in range(120)]
    assert [image.index for image in found.images] == [n // 12 for n in range(120)]
