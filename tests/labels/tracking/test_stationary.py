"""Places that are always taken, among the candidates of a recording."""

from __future__ import annotations

import numpy as np

from cahqp.association import places_taken, stationary_factor
from cahqp.labels.candidates import Candidates
from cahqp.labels.options import LabelOptions
from cahqp.labels.tracking.stationary import PROBES, OccupiedPositions, probes

LIMITS = np.array([0.4])
HALF = LabelOptions(stationary_weight=0.5, ignore_share=0.0)


def candidates(number: int, lamp: float = 0.5) -> Candidates:
    boxes = np.array([[10.0, 10, 20, 20], [30.0 * number, 50, 30.0 * number + 20, 60]])
    return Candidates(boxes, np.array([lamp, 0.45]), np.array([0, 0]))


def test_what_stands_falls_behind_what_passes():
    places = OccupiedPositions({number: candidates(number) for number in range(7)}, LIMITS)
    found = places.reweight(3, candidates(3), HALF)
    assert found.scores.tolist() == [0.45, 0.25]
    assert found.optional_values(1) == {"detector_score": 0.5}


def test_hopeless_boxes_take_no_place():
    places = OccupiedPositions({number: candidates(number, lamp=0.1) for number in range(7)}, LIMITS)
    assert places.reweight(7, candidates(7), HALF).scores.tolist() == [0.5, 0.45]


def test_few_frames_say_nothing():
    places = OccupiedPositions({number: candidates(number) for number in range(5)}, LIMITS)
    assert places.reweight(0, candidates(0), HALF).detector_scores is None


def test_probes_are_spread_over_the_recording():
    assert probes(list(range(5))) == [0, 1, 2, 3, 4]
    many = probes(list(range(1000)))
    assert (len(many), many[0], many[-1]) == (PROBES, 0, 999)


def test_places_taken_looks_at_every_frame():
    boxes = np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    frames = [boxes[:1], np.zeros((0, 4)), boxes, boxes[1:] + 20]
    assert places_taken(boxes, frames, 0.6).tolist() == [[True, False, True, False], [False, False, True, False]]
    assert places_taken(boxes[:0], frames, 0.6).shape == (0, 4)
    assert places_taken(boxes, [], 0.6).shape == (2, 0)


def test_the_factor_falls_between_its_corners():
    shares = np.array([0.0, 0.2, 0.4, 0.6, 1.0])
    assert np.allclose(stationary_factor(shares, 0.5), [1, 1, 0.75, 0.5, 0.5])
    assert np.allclose(stationary_factor(shares, 1.0), 1)


def test_what_will_be_no_label_is_left_as_it_is():
    places = OccupiedPositions({number: candidates(number) for number in range(7)}, LIMITS)
    options = LabelOptions(stationary_weight=0.5, ignore_share=0.6)
    assert places.reweight(7, candidates(7, lamp=0.2), options).scores.tolist() == [0.45, 0.2]
