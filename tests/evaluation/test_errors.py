import numpy as np
import pytest

from cahqp.evaluation.errors import ERROR_TYPES, error_table, find_errors
from cahqp.evaluation.ground_truth import GroundTruth, GroundTruthImage, ImagePredictions, Predictions
from cahqp.evaluation.supervision import supervision_roles

CLASSES = ("car", "bus")


def image(boxes, labels, ignore=None):
    ignore = np.zeros(len(labels), bool) if ignore is None else np.array(ignore)
    return GroundTruthImage(1, "a.jpg", "", 0, np.array(boxes, float).reshape(-1, 4), np.array(labels), ignore)


def found(*rows):
    """Each row is x1, y1, x2, y2, score, label."""
    table = np.array(rows, float).reshape(-1, 6)
    return ImagePredictions(table[:, :4], table[:, 4], table[:, 5].astype(int))


CAR, BUS, FAR = [0, 0, 10, 10], [50, 0, 70, 10], [0, 80, 10, 90]
SCENE = image([CAR, BUS, FAR], [0, 1, 0])


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ([*CAR, 0.9, 0], "correct"),
        ([*BUS, 0.9, 0], "class"),
        ([7, 0, 17, 10, 0.9, 0], "localisation"),
        ([66, 0, 86, 10, 0.9, 0], "both"),
        ([30, 30, 40, 40, 0.9, 0], "background"),
    ],
)
def test_each_detection_has_its_type(row, kind):
    assert find_errors(SCENE, found(row)).types == (kind,)


def test_the_second_box_of_an_object_is_a_duplicate():
    assert find_errors(SCENE, found([*CAR, 0.5, 0], [*CAR, 0.9, 0])).types == ("duplicate", "correct")


def test_objects_that_class_and_localisation_errors_point_to_are_not_missed():
    errors = find_errors(SCENE, found([*BUS, 0.9, 0], [7, 0, 17, 10, 0.8, 0]))
    assert errors.missed.tolist() == [2]
    assert errors.objects.tolist() == [1, 0]


def test_detections_in_ignored_regions_of_their_class_are_no_errors():
    scene = image([CAR, [40, 40, 90, 90]], [0, 0], [False, True])
    errors = find_errors(scene, found([50, 50, 60, 60, 0.9, 0], [50, 50, 60, 60, 0.9, 1]))
    assert errors.types == ("ignored", "background")
    assert errors.missed.tolist() == [0]


def table(predictions, scene=SCENE):
    return error_table(GroundTruth(CLASSES, (scene,)), Predictions(CLASSES, {1: predictions}))


def test_repairs_gain_what_they_are_worth():
    # One car right, the bus as a car, a car in the background, one car missed: 1 hit, 3 detections, 3 objects.
    errors = table(found([*CAR, 0.9, 0], [*BUS, 0.8, 0], [30, 30, 40, 40, 0.95, 0]))
    assert {name: row["count"] for name, row in errors.items() if row["count"]} == {
        "class": 1,
        "background": 1,
        "missed": 1,
    }
    assert errors["class"]["f1_gain"] == pytest.approx(4 / 6 - 2 / 6)
    assert errors["background"]["f1_gain"] == pytest.approx(2 / 5 - 2 / 6)
    assert errors["missed"]["f1_gain"] == pytest.approx(2 / 5 - 2 / 6)
    # The bus gains its whole class; the cars' AP50 stays at half of their recall.
    assert errors["class"]["ap50_gain"] == pytest.approx(0.5)


def test_no_error_type_gains_anything_without_errors():
    errors = table(found([*CAR, 0.9, 0], [*BUS, 0.8, 1], [*FAR, 0.7, 0]))
    assert [errors[name] for name in ERROR_TYPES] == [{"count": 0, "ap50_gain": 0, "f1_gain": 0}] * 6


def test_a_repaired_detection_does_not_count_beside_a_better_one_of_its_object():
    errors = table(found([*CAR, 0.9, 0], [*BUS, 0.8, 1], [*FAR, 0.7, 0], [4, 0, 14, 10, 0.6, 0]))
    assert errors["duplicate"]["count"] == 0
    assert errors["localisation"]["count"] == 1
    assert errors["localisation"]["f1_gain"] == pytest.approx(1 - 6 / 7)


def test_a_class_of_missed_objects_alone_gains_nothing():
    errors = table(found([*CAR, 0.9, 0], [*FAR, 0.8, 0]))
    assert errors["missed"]["ap50_gain"] == pytest.approx(0.0)


def test_true_objects_have_one_role_each():
    scene = image([CAR, BUS, FAR, [30, 30, 40, 40]], [0, 1, 0, 0])
    labels = found([*CAR, 0.9, 0], [*BUS, 0.8, 0])
    roles = supervision_roles(
        GroundTruth(CLASSES, (scene,)),
        Predictions(CLASSES, {1: labels}),
        {1: np.array([[0, 84, 10, 99], [0, 80, 40, 86]], float)},
    )
    assert roles == {"positive": 0.25, "other_class": 0.25, "ignored": 0.25, "background": 0.25, "objects": 4}
