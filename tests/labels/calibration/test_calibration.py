import json
from dataclasses import replace

import numpy as np
import pytest

from cahqp.errors import DataError
from cahqp.labels.calibration.curves import estimated_drift, expected_error, fit, reliability
from cahqp.labels.calibration.file import fit_calibration, read_calibration, write_calibration

METHODS = ["isotonic", "platt", "temperature"]
IDENTITY = {"models": ["abc"], "views": [1]}


def detections(seed, count=4000, power=1.0):
    """Return overconfident scores: a box scored s is right with probability `power` of its logit halved."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.05, 0.98, count)
    logits = 0.5 * power * np.log(scores / (1 - scores))
    return scores, rng.uniform(0, 1, count) < 1 / (1 + np.exp(-logits))


def test_expected_error_is_the_mean_gap():
    bars = reliability(np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, False, False, False]))
    assert [bar.count for bar in bars] == [2, 2]
    assert expected_error(bars) == pytest.approx((0.1 + 0.4) / 2)
    assert expected_error([]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_the_error_on_other_detections_is_at_least_halved(method):
    scores, hits = detections(0)
    curve = fit(method, {"car": scores}, {"car": hits})["car"]
    others, ground_truth = detections(1)
    before, after = (expected_error(reliability(s, ground_truth)) for s in (others, curve(others)))
    assert before > 0.08
    assert after <= before / 2


@pytest.mark.parametrize("method", METHODS)
def test_curves_rise_and_stay_in_bounds(method):
    scores, hits = detections(2, 300)
    values = fit(method, {"car": scores}, {"car": hits})["car"](np.linspace(0, 1, 501))
    assert (np.diff(values) >= 0).all()
    assert values.min() >= 0
    assert values.max() <= 1


def test_scores_of_one_step_keep_their_order():
    scores, hits = detections(2, 300)
    values = fit("isotonic", {"car": scores}, {"car": hits})["car"](np.linspace(0.2, 0.8, 50))
    assert (np.diff(values) > 0).mean() > 0.9


def test_a_class_with_few_detections_takes_the_curve_of_all():
    scores, hits = detections(3)
    curves = fit("platt", {"car": scores, "bus": scores[:5]}, {"car": hits, "bus": hits[:5]})
    assert (curves["car"].own, curves["bus"].own) == (True, False)


def test_too_little_to_fit_is_refused():
    with pytest.raises(DataError, match="at least 20 detections"):
        fit("platt", {"car": np.full(30, 0.5)}, {"car": np.zeros(30, np.bool_)})


def made(lent=(), objects=50):
    scores, hits = detections(4, 400)
    both = {"car": scores, "bus": scores[:40]}, {"car": hits, "bus": hits[:40]}
    return fit_calibration(IDENTITY, "isotonic", *both, {"car": 50, "bus": objects}, lent)


def test_a_class_without_objects_is_refused_or_lent_a_curve():
    with pytest.raises(DataError, match="no object of bus"):
        made(objects=0)
    assert not made(["bus"], objects=0).curves["bus"].own
    with pytest.raises(DataError, match="names lorry"):
        made(["lorry"])


def test_a_file_comes_back_and_knows_what_it_is_for(tmp_path):
    found = made()
    write_calibration(tmp_path / "calibration.json", found, {})
    back = read_calibration(tmp_path, IDENTITY, ("car", "bus"))
    assert back.curves == found.curves
    assert np.array_equal(back.hits["car"], found.hits["car"])
    assert np.abs(back.scores["car"] - found.scores["car"]).max() <= 5e-5
    with pytest.raises(DataError, match=r"views was \[1\], is \[2\]"):
        read_calibration(tmp_path, IDENTITY | {"views": [2]}, ("car",))
    with pytest.raises(DataError, match="no calibration of lorry"):
        read_calibration(tmp_path, IDENTITY, ("car", "lorry"))
    (tmp_path / "calibration.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(DataError, match="no calibration of this version"):
        read_calibration(tmp_path, IDENTITY, ("car",))


def test_asked_precision_is_that_of_what_suppression_by_calibrated_scores_keeps(tmp_path):
    kept = np.array([0.9, 0.7666666, 0.7, 0.6]), np.array([True, True, False, True])
    found = replace(made(), after_nms={"car": kept, "bus": kept})
    write_calibration(tmp_path / "calibration.json", found, {})
    threshold = read_calibration(tmp_path, IDENTITY, ("car", "bus")).thresholds(0.9)["car"]
    assert 0.7 < threshold <= 0.7666666  # what is written must not ask for more than the box that it is taken from has


def test_no_threshold_is_zero():
    scores, hits = np.linspace(0.05, 1, 200), np.linspace(0.05, 1, 200) > 0.2
    found = fit_calibration({}, "isotonic", {"car": scores}, {"car": hits}, {"car": 170})
    assert found.thresholds(0.1) == {"car": 1e-3}


def test_drift_is_nothing_on_the_source_and_much_elsewhere():
    scores, hits = detections(5)
    bars = reliability(scores, hits)
    assert estimated_drift(bars, scores)["distance"] < 0.01
    assert estimated_drift(bars, scores)["expected_error"] == pytest.approx(expected_error(bars), abs=1e-3)
    sure = scores > 0.3
    far = estimated_drift(reliability(scores[sure], hits[sure]), scores / 5)
    assert far["distance"] > 0.8
    assert far["unknown"] > 0.8
    assert estimated_drift(bars, np.zeros(0)) == {"distance": 0, "expected_error": 0, "unknown": 0}
