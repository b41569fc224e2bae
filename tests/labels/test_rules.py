import pytest
import torch

from cahqp.errors import ConfigError, RunError
from cahqp.frame import Frame
from cahqp.inference.frames import FrameBatch
from cahqp.labels.options import LabelOptions
from cahqp.labels.rules import BELOW, OUTSIDE, OVERLAP, TOO_MANY, Rules, label_frame, thresholds_of
from cahqp.relabelling import shard_writer
from cahqp.relabelling.shard_writer import SingleTeacher
from cahqp.structures import Batch, Detections

CLASSES = ("car", "person")
SIZE = (100, 200)


@pytest.fixture
def select(monkeypatch):
    """Return the labels of a frame from the detections of one teacher, by thresholds alone."""

    def run(*rows, thresholds=0.3, **options):
        table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
        found = Detections(table[:, :4], table[:, 4], table[:, 5].long())
        monkeypatch.setattr(shard_writer, "detect", lambda detector, batch: [found])
        limits = thresholds_of(thresholds, CLASSES)
        teacher = SingleTeacher(torch.nn.Identity(), min(0.05, limits.min()))
        batch = Batch(torch.zeros(1, 3, 1, 1), None, [], [Frame(1, "a.jpg", SIZE)])
        (candidates,) = teacher.predict_step(FrameBatch(batch, [0]), 0)
        record = {"position": 0, "image": {}}
        return label_frame(record, candidates, Rules(CLASSES, limits, LabelOptions(**options), plain=True))

    return run


def labels(found):
    return [box["label"] for box in found["kept"]]


def reasons(found):
    assert not found["ignored"]
    return [box["reason"] for box in found["rejected"]]


CAR = (10, 10, 50, 40, 0.9, 0)
SAME_AS_PERSON = (11, 10, 50, 40, 0.8, 1)
FAR = (100, 50, 140, 90, 0.5, 1)


def test_overlap_is_rejected_whatever_the_class(select):
    found = select(SAME_AS_PERSON, CAR, FAR)
    assert [box["score"] for box in found["kept"]] == pytest.approx([0.9, 0.5])
    assert reasons(found) == [OVERLAP]


def test_overlap_can_be_left_alone(select):
    assert len(select(CAR, SAME_AS_PERSON, nms_iou=1.0)["kept"]) == 2


def test_thresholds_by_class(select):
    found = select(CAR, FAR, thresholds={"car": 0.95, "person": 0.5})
    assert labels(found) == [1]
    assert reasons(found) == [BELOW]


def test_a_box_below_its_threshold_suppresses_nothing(select):
    found = select(CAR, SAME_AS_PERSON, thresholds={"car": 0.95, "person": 0.5})
    assert labels(found) == [1]


def test_max_boxes_keeps_the_best(select):
    found = select(FAR, CAR, max_boxes=1)
    assert labels(found) == [0]
    assert reasons(found) == [TOO_MANY]


def test_boxes_are_clipped_and_those_outside_rejected(select):
    found = select((-20, -5, 30, 120, 0.9, 0), (300, 0, 340, 20, 0.9, 0))
    assert [box["bbox"] for box in found["kept"]] == [[0, 0, 30, 100]]
    assert reasons(found) == [OUTSIDE]


def test_below_the_floor_is_not_even_rejected(select):
    found = select((0, 0, 10, 10, 0.01, 0))
    assert (len(found["kept"]), len(found["rejected"])) == (0, 0)


def test_no_detections(select):
    assert reasons(select()) == []


def test_reasons_belong_to_their_boxes(select):
    found = select((60, 60, 90, 90, 0.1, 0), SAME_AS_PERSON, CAR)
    by_score = {box["reason"]: box["score"] for box in found["rejected"]}
    assert by_score == pytest.approx({OVERLAP: 0.8, BELOW: 0.1})


def test_every_fault_of_the_thresholds_is_listed(select):
    with pytest.raises(ConfigError, match=r"'person' has none.*'tram' is no class.*1\.5"):
        select(CAR, thresholds={"car": 1.5, "tram": 0.3})


def test_not_a_number_is_refused(select):
    with pytest.raises(RunError, match="NaN or infinite"):
        select((0, 0, float("nan"), 10, 0.9, 0))
