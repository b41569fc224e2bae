import pytest
import torch

from cahqp.adaptation.pseudo_labels import DynamicThresholds, select_pseudo_labels
from cahqp.errors import ConfigError
from cahqp.structures import Detections

FAR = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]]


def detections(scores, boxes=FAR, labels=None) -> Detections:
    labels = [0] * len(scores) if labels is None else labels
    return Detections(torch.tensor(boxes[: len(scores)]).float(), torch.tensor(scores), torch.tensor(labels))


def test_scores_split_boxes_into_trained_ignored_and_dropped():
    chosen = select_pseudo_labels(detections([0.2, 0.4, 0.6, 0.3]), 0.4, ignore_threshold=0.3)
    assert chosen.boxes[:, 0].tolist() == [40, 20]
    assert chosen.ignore[:, 0].tolist() == [60]
    assert chosen.weights.tolist() == [1, 1]


def test_without_a_band_nothing_is_ignored():
    assert len(select_pseudo_labels(detections([0.2, 0.39, 0.6]), 0.4).ignore) == 0


def test_thresholds_per_class():
    chosen = select_pseudo_labels(
        detections([0.5, 0.5, 0.5], labels=[0, 1, 2]), torch.tensor([0.4, 0.6, 0.9]), ignore_threshold=0.45
    )
    assert chosen.labels.tolist() == [0]
    assert chosen.ignore[:, 0].tolist() == [20, 40]


def test_a_band_per_class():
    band = torch.tensor([0.1, 0.45])
    chosen = select_pseudo_labels(detections([0.3, 0.3], labels=[0, 1]), 0.4, ignore_threshold=band)
    assert chosen.ignore[:, 0].tolist() == [0]


@pytest.mark.parametrize(("agnostic", "kept"), [(True, [1]), (False, [1, 0])])
def test_duplicates_of_another_class_go_when_agnostic(agnostic, kept):
    twice = detections([0.5, 0.6], [[0, 0, 10, 10], [0, 0, 10, 9]], [0, 1])
    assert select_pseudo_labels(twice, 0.4, class_agnostic=agnostic).labels.tolist() == kept


def test_overlap_below_the_limit_stays():
    apart = detections([0.5, 0.6], [[0, 0, 10, 10], [0, 0, 10, 6]])
    assert len(select_pseudo_labels(apart, 0.4, nms_iou=0.7)) == 2
    assert len(select_pseudo_labels(apart, 0.4, nms_iou=0.5)) == 1


def test_a_doubtful_duplicate_of_a_confident_box_is_not_ignored():
    twice = detections([0.6, 0.3], [[0, 0, 10, 10], [0, 0, 10, 9]])
    chosen = select_pseudo_labels(twice, 0.4, ignore_threshold=0.2)
    assert len(chosen) == 1 and len(chosen.ignore) == 0


def test_confident_boxes_beyond_the_most_are_ignored_not_background():
    chosen = select_pseudo_labels(detections([0.5, 0.9, 0.7]), 0.4, max_boxes=2)
    assert chosen.boxes[:, 0].tolist() == [20, 40]
    assert chosen.ignore[:, 0].tolist() == [0]


def test_weights_follow_the_score_where_asked():
    assert select_pseudo_labels(detections([0.5, 0.75]), 0.4, weight_by_score=True).weights.tolist() == [0.75, 0.5]


def test_boxes_without_area_or_not_finite_are_left_out():
    bad = [[5, 5, 5, 9], [0, 0, float("nan"), 4], [0, 0, 4, 4]]
    assert len(select_pseudo_labels(detections([0.9, 0.9, 0.9], bad), 0.4)) == 1
    assert len(select_pseudo_labels(detections([float("nan")]), 0.4, ignore_threshold=0.1).ignore) == 0


def test_no_detections_give_empty_targets():
    chosen = select_pseudo_labels(Detections.empty(), torch.tensor([0.4]), ignore_threshold=0.2)
    assert len(chosen) == 0 and chosen.ignore.shape == (0, 4)


def test_impossible_thresholds_are_refused():
    with pytest.raises(ConfigError, match=r"ignore_threshold must not be above the threshold 0.4, got 0.5"):
        select_pseudo_labels(detections([0.5]), 0.4, ignore_threshold=0.5)
    with pytest.raises(ConfigError, match="2 classes, but a detection has class 2"):
        select_pseudo_labels(detections([0.5], labels=[2]), torch.tensor([0.4, 0.4]))


def test_dynamic_thresholds_follow_mrt():
    thresholds = DynamicThresholds(3, initial=0.3, momentum=0.9, factor=0.5)
    thresholds.observe(torch.tensor([0.81, 0.49]), torch.tensor([0, 0]))
    thresholds.observe(torch.tensor([0.01]), torch.tensor([2]))
    first = thresholds.update()
    assert first.tolist() == pytest.approx([0.9 * 0.3 + 0.1 * 0.5 * 0.65**0.5, 0.3, 0.9 * 0.3 + 0.1 * 0.5 * 0.1])
    assert torch.equal(thresholds.update(), first)


def test_dynamic_thresholds_are_clipped_and_saved():
    thresholds = DynamicThresholds(1, momentum=0.0, factor=0.9, maximum=0.45)
    thresholds.observe(torch.tensor([0.9]), torch.tensor([0]))
    restored = DynamicThresholds(1, momentum=0.0, factor=0.9, maximum=0.45)
    restored.load_state_dict(thresholds.state_dict())
    assert restored.update().tolist() == pytest.approx([0.45])
