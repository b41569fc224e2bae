import pytest
import torch

from cahqp.errors import ConfigError, RunError
from cahqp.labels.select import BELOW_THRESHOLD, OUTSIDE, OVERLAP, TOO_MANY, select
from cahqp.structures import Detections

CLASSES = ("car", "person")
SIZE = (100, 200)


def detections(*rows):
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


CAR = (10, 10, 50, 40, 0.9, 0)
SAME_AS_PERSON = (11, 10, 50, 40, 0.8, 1)
FAR = (100, 50, 140, 90, 0.5, 1)


def test_overlap_is_rejected_whatever_the_class():
    found = select(detections(SAME_AS_PERSON, CAR, FAR), SIZE, CLASSES)
    assert found.kept.scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.reasons == [OVERLAP]


def test_overlap_can_be_left_alone():
    assert len(select(detections(CAR, SAME_AS_PERSON), SIZE, CLASSES, nms_iou=None).kept) == 2


def test_thresholds_by_class():
    found = select(detections(CAR, FAR), SIZE, CLASSES, thresholds={"car": 0.95, "person": 0.5})
    assert found.kept.labels.tolist() == [1]
    assert found.reasons == [BELOW_THRESHOLD]


def test_a_box_below_its_threshold_suppresses_nothing():
    found = select(detections(CAR, SAME_AS_PERSON), SIZE, CLASSES, thresholds={"car": 0.95, "person": 0.5})
    assert found.kept.labels.tolist() == [1]


def test_max_boxes_keeps_the_best():
    found = select(detections(FAR, CAR), SIZE, CLASSES, max_boxes=1)
    assert found.kept.labels.tolist() == [0]
    assert found.reasons == [TOO_MANY]


def test_boxes_are_clipped_and_those_outside_rejected():
    found = select(detections((-20, -5, 30, 120, 0.9, 0), (300, 0, 340, 20, 0.9, 0)), SIZE, CLASSES)
    assert found.kept.boxes.tolist() == [[0, 0, 30, 100]]
    assert found.reasons == [OUTSIDE]


def test_below_the_floor_is_not_even_rejected():
    found = select(detections((0, 0, 10, 10, 0.01, 0)), SIZE, CLASSES)
    assert (len(found.kept), len(found.rejected)) == (0, 0)


def test_no_detections():
    assert select(Detections.empty(), SIZE, CLASSES).reasons == []


def test_reasons_belong_to_their_boxes():
    found = select(detections((60, 60, 90, 90, 0.1, 0), SAME_AS_PERSON, CAR), SIZE, CLASSES)
    by_score = dict(zip(found.reasons, found.rejected.scores.tolist(), strict=True))
    assert by_score == pytest.approx({OVERLAP: 0.8, BELOW_THRESHOLD: 0.1})


def test_every_fault_of_the_thresholds_is_told():
    with pytest.raises(ConfigError, match=r"'person' has none.*'tram' is no class.*1\.5"):
        select(detections(CAR), SIZE, CLASSES, thresholds={"car": 1.5, "tram": 0.3})


def test_not_a_number_is_refused():
    with pytest.raises(RunError, match="not a number"):
        select(detections((0, 0, float("nan"), 10, 0.9, 0)), SIZE, CLASSES)
