import numpy as np
import pytest

from cahqp.errors import ConfigError
from cahqp.labels.calibration.curves import Curve
from cahqp.labels.calibration.thresholds import NEVER, Histogram, dynamic, for_precision
from cahqp.labels.candidates import Candidates, calibrated, clip_candidates
from cahqp.labels.options import LabelOptions
from cahqp.labels.rules import BELOW, DOUBTFUL, OVERLAP, TOO_MANY, Rules, label_frame

IMAGE = {"id": 7, "file_name": "a.jpg", "width": 200, "height": 100}
RECORD = {"position": 3, "image": IMAGE}


@pytest.mark.parametrize("precision", [0.5, 0.8, 0.95])
def test_target_precision_is_met_and_not_by_giving_up(precision):
    rng = np.random.default_rng(0)
    scores = np.round(rng.uniform(0, 1, 3000), 3)
    hits = rng.uniform(0, 1, 3000) < scores
    threshold = for_precision(scores, hits, precision)
    assert hits[scores >= threshold].mean() >= precision
    lower = np.unique(scores[scores < threshold])
    assert all(hits[scores >= value].mean() < precision for value in lower)
    other = rng.uniform(0, 1, 3000)
    assert (rng.uniform(0, 1, 3000) < other)[other >= threshold].mean() == pytest.approx(precision, abs=0.03)


def test_equal_scores_are_taken_all_or_none():
    scores, hits = np.array([0.9, 0.5, 0.5, 0.5]), np.array([True, True, False, False])
    assert for_precision(scores, hits, 0.6) == 0.9
    assert for_precision(scores, ~hits, 0.9) == NEVER
    assert for_precision(np.zeros(0), np.zeros(0, np.bool_), 0.5) == NEVER


def test_top_share():
    histogram = Histogram()
    histogram.add(np.linspace(0, 1, 1001)[:-1])
    assert histogram.top_share(0.25) == pytest.approx(0.75, abs=0.002)
    assert Histogram().top_share(0.25) == NEVER


def histogram_of(*scores):
    histogram = Histogram()
    histogram.add(np.array(scores))
    return histogram


def test_dynamic_thresholds_fall_with_sureness_within_bounds():
    target = {"car": histogram_of(0.4, 0.5), "bus": histogram_of(0.9), "van": histogram_of(0.26), "cab": Histogram()}
    thresholds = dict.fromkeys(target, 0.5)
    found = dynamic(thresholds, target, {"car": 0.6, "bus": 0.6, "van": 0.9, "cab": 0.6})
    assert found["car"] == pytest.approx(0.5 * 0.45 / 0.6)
    assert found["bus"] == 0.5
    assert found["van"] == 0.25
    assert found["cab"] == 0.5


def test_two_rules_at_once_are_refused():
    with pytest.raises(ConfigError, match="--threshold and --top-share"):
        LabelOptions(threshold=0.3, top_share=0.4)
    LabelOptions(threshold=0.3)


def candidates(*rows):
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Candidates(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


SURE = (10, 10, 50, 40, 0.9, 0)
TWIN = (10, 10, 50, 41, 0.7, 0)
HALF = (100, 10, 150, 40, 0.45, 0)
LOW = (100, 60, 150, 90, 0.2, 0)


def rules(**more):
    return Rules(("car", "bus"), np.array([0.6, 0.6]), LabelOptions(**more))


def parted(found):
    return {part: [(b["score"], b.get("reason", "")) for b in found[part]] for part in ("kept", "ignored", "rejected")}


def test_three_bands():
    found = label_frame(RECORD, candidates(SURE, TWIN, HALF, LOW), rules(ignore_share=0.5))
    assert parted(found) == {
        "kept": [(0.9, "")],
        "ignored": [(0.45, DOUBTFUL)],
        "rejected": [(0.7, OVERLAP), (0.2, BELOW)],
    }
    assert found["ignored"][0]["iscrowd"] == 1
    assert "iscrowd" not in found["kept"][0]


def test_without_a_band_there_is_no_doubt():
    found = label_frame(RECORD, candidates(SURE, HALF), rules())
    assert parted(found) == {"kept": [(0.9, "")], "ignored": [], "rejected": [(0.45, BELOW)]}


def test_too_many_boxes_are_dropped():
    found = label_frame(RECORD, candidates(SURE, (100, 10, 150, 40, 0.8, 1)), rules(max_boxes=1))
    assert parted(found)["rejected"] == [(0.8, TOO_MANY)]


def test_weights_and_mistakes_follow_what_is_known():
    found = label_frame(RECORD, candidates(SURE, LOW), rules(weight_by_score=True))
    assert found["kept"][0]["weight"] == pytest.approx(0.9)
    assert found["image"]["uncertainty"] == pytest.approx(0.1)
    assert found["image"]["mistakes"] == pytest.approx(0.1 + 0.2)


def test_agreement_is_part_of_uncertainty():
    one = candidates(SURE)
    found = label_frame(RECORD, Candidates(one.boxes, one.scores, one.labels, np.array([0.5])), rules())
    assert found["kept"][0]["uncertainty"] == pytest.approx(1 - (0.9 + 0.5) / 2)


def test_calibrated_scores_are_sorted_anew():
    curves = [Curve((0.0, 1.0), (0.0, 0.5)), Curve((0.0, 1.0), (0.0, 1.0))]
    found = calibrated(candidates(SURE, (100, 10, 150, 40, 0.8, 1)), curves)
    assert found.scores.tolist() == pytest.approx([0.8, 0.45])
    assert found.labels.tolist() == [1, 0]


def test_boxes_are_brought_into_their_frame():
    found = clip_candidates(candidates((-5, -5, 300, 50, 0.5, 0), (198, 0, 198.5, 50, 0.9, 0)), (100, 200), 0.05, "a")
    assert found.boxes.tolist() == [[0, 0, 200, 50]]
