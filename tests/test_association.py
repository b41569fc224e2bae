import numpy as np
import pytest

from cahqp.association import match_boxes, pairwise_iou

A = np.array([[0, 0, 10, 10], [20, 0, 30, 10]])
B = np.array([[21, 0, 31, 10], [1, 0, 11, 10], [50, 50, 60, 60]])
ALIKE = np.zeros(2, int), np.zeros(3, int)


def test_iou_of_overlapping_apart_and_empty_boxes():
    assert pairwise_iou(A[:1], np.array([[5, 0, 15, 10], [50, 0, 60, 9], [3, 3, 3, 3]])).tolist() == [[1 / 3, 0, 0]]
    assert pairwise_iou(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0]]


def test_pairs_are_the_best_in_sum():
    assert match_boxes(A, ALIKE[0], B, ALIKE[1], 0.3).tolist() == [[0, 1], [1, 0]]


def test_classes_never_mix_unless_left_aside():
    assert match_boxes(A, np.array([0, 1]), B, np.array([0, 0, 0]), 0.3).tolist() == [[0, 1]]
    assert len(match_boxes(A, None, B, None, 0.3)) == 2


def test_least_overlap_holds():
    assert len(match_boxes(A, *(ALIKE[0], B, ALIKE[1]), min_iou=0.9)) == 0


def test_near_boxes_match_only_where_asked():
    small, moved = np.array([[0, 0, 4, 4]]), np.array([[5, 0, 9, 4]])
    assert len(match_boxes(small, None, moved, None, 0.3)) == 0
    assert match_boxes(small, None, moved, None, 0.3, max_distance=1.0).tolist() == [[0, 0]]


def test_overlap_counts_more_than_nearness():
    inside, taller = [4, 4, 6, 6], [0, 0, 10, 20]
    pairs = match_boxes(A[:1], None, np.array([inside, taller]), None, 0.3, max_distance=1.0)
    assert pairs.tolist() == [[0, 1]]


def test_no_boxes_match_nothing():
    assert match_boxes(np.zeros((0, 4)), np.zeros(0, int), B, ALIKE[1], 0.3).shape == (0, 2)


def test_half_given_labels_are_refused():
    with pytest.raises(ValueError, match="both sides"):
        match_boxes(A, ALIKE[0], B, None)
