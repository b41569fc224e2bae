import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cahqp.errors import DataError
from cahqp.evaluation.ground_truth import (
    GroundTruth,
    GroundTruthImage,
    ImagePredictions,
    Predictions,
    read_ground_truth,
)
from cahqp.evaluation.matching import average_precisions
from cahqp.evaluation.metrics import at_thresholds, average_precision, best_f1, macro

CLASSES = ("car", "person", "tram")


def boxes(random, count):
    corner, size = random.uniform(0, 80, (count, 2)), random.uniform(5, 40, (count, 2))
    return np.concatenate([corner, corner + size], 1)


def truth_image(number, random):
    count = int(random.integers(0, 7))
    labels, ignore = random.integers(0, 2, count), random.random(count) < 0.15
    return GroundTruthImage(number + 1, f"{number}.jpg", "", number, boxes(random, count), labels, ignore)


def predicted(image, random):
    shaken = image.boxes + random.normal(0, 2.5, image.boxes.shape)
    everything = np.concatenate([shaken, boxes(random, 4)])
    labels = np.concatenate([image.labels, random.integers(0, 3, 4)])
    scores = np.round(random.random(len(everything)), 2)  # ties on purpose
    return ImagePredictions(everything, scores, labels)


def example(seed=0, images=30):
    random = np.random.default_rng(seed)
    ground_truth = GroundTruth(CLASSES, tuple(truth_image(number, random) for number in range(images)))
    return ground_truth, Predictions(CLASSES, {image.id: predicted(image, random) for image in ground_truth.images})


def rows(boxes, labels, image_id, **more):
    for number, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        x1, y1, x2, y2 = box.tolist()
        bbox = [x1, y1, x2 - x1, y2 - y1]
        entry = {"image_id": image_id, "category_id": int(label) + 1, "bbox": bbox, "area": bbox[2] * bbox[3]}
        yield entry | {key: values[number].item() for key, values in more.items()}


def as_coco(ground_truth):
    found = [r for i in ground_truth.images for r in rows(i.boxes, i.labels, i.id, iscrowd=i.ignore.astype(int))]
    return {
        "info": {},
        "images": [{"id": i.id, "file_name": i.name, "width": 200, "height": 200} for i in ground_truth.images],
        "categories": [{"id": n, "name": name} for n, name in enumerate(ground_truth.classes, start=1)],
        "annotations": [row | {"id": n} for n, row in enumerate(found, start=1)],
    }


def plain_pycocotools(ground_truth, predictions):
    """COCO's own way from beginning to end: (AP, AP50)."""
    found = [r for i, p in predictions.images.items() for r in rows(p.boxes, p.labels, i, score=p.scores)]
    with contextlib.redirect_stdout(io.StringIO()):
        gold = COCO()
        gold.dataset = as_coco(ground_truth)
        gold.createIndex()
        evaluation = COCOeval(gold, gold.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:2].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools(seed):
    metrics = average_precision(*example(seed))
    assert [metrics.map, metrics.ap50] == pytest.approx(plain_pycocotools(*example(seed)), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_cached_matches_give_the_same_ap50(seed):
    metrics = average_precision(*example(seed))
    assert macro(average_precisions(metrics.matches)) == pytest.approx(metrics.ap50, abs=1e-9)


def test_a_class_without_objects_does_not_count():
    metrics = average_precision(*example())
    assert metrics.per_class["tram"].ap50 is None
    assert metrics.ap50 == pytest.approx((metrics.per_class["car"].ap50 + metrics.per_class["person"].ap50) / 2)


def test_the_ground_truth_itself_is_perfect():
    ground_truth, _ = example()
    answers = {i.id: ImagePredictions(i.boxes, np.ones(len(i.boxes)), i.labels) for i in ground_truth.images}
    metrics = average_precision(ground_truth, Predictions(CLASSES, answers))
    assert (metrics.ap50, metrics.map) == pytest.approx((1, 1))


def test_ignored_regions_count_neither_way():
    ground_truth, predictions = example()
    everything = tuple(replace(image, ignore=np.ones_like(image.ignore)) for image in ground_truth.images)
    metrics = average_precision(replace(ground_truth, images=everything), predictions)
    assert (metrics.ap50, metrics.per_class["car"].objects) == (None, 0)


def nothing(ground_truth):
    empty = ImagePredictions(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    return Predictions(CLASSES, {image.id: empty for image in ground_truth.images})


def test_no_detections_at_all():
    ground_truth, _ = example()
    metrics = average_precision(ground_truth, nothing(ground_truth))
    assert (metrics.ap50, best_f1(metrics.matches)) == (0, {})


def test_prints_nothing(capsys):
    average_precision(*example())
    assert capsys.readouterr().out == ""


def test_an_image_that_was_not_predicted_is_named():
    ground_truth, predictions = example()
    answers = {key: value for key, value in predictions.images.items() if key != 3}
    with pytest.raises(DataError, match=r"1 of 30 images were not predicted, the first is 2\.jpg"):
        average_precision(ground_truth, Predictions(CLASSES, answers))


def test_other_classes_are_refused():
    ground_truth, predictions = example()
    with pytest.raises(DataError, match="cannot be measured"):
        average_precision(ground_truth, replace(predictions, classes=("person", "car", "tram")))


def scored(*hits_and_scores, objects):
    """One image with `objects` cars in a row; each detection is (row of the car or None, score)."""
    there = np.array([[50 * n, 0, 50 * n + 40, 40] for n in range(objects)], float)
    found = [there[row] if row is not None else np.array([0, 900, 10, 910.0]) for row, _ in hits_and_scores]
    scores = np.array([score for _, score in hits_and_scores])
    ground_truth = GroundTruthImage(1, "a", "", 0, there, np.zeros(objects, int), np.zeros(objects, bool))
    answer = ImagePredictions(np.array(found).reshape(-1, 4), scores, np.zeros(len(scores), int))
    return average_precision(GroundTruth(("car",), (ground_truth,)), Predictions(("car",), {1: answer})).matches


def test_precision_recall_and_f1_at_a_threshold():
    matches = scored((0, 0.9), (None, 0.6), (1, 0.5), (None, 0.3), objects=4)
    point = at_thresholds(matches, 0.5)["car"]
    assert (point.precision, point.recall, point.f1) == pytest.approx((2 / 3, 2 / 4, 4 / 7))
    assert at_thresholds(matches, {"car": 0.95})["car"].precision == 0


def test_best_f1_by_hand():
    matches = scored((0, 0.9), (None, 0.6), (1, 0.5), (None, 0.3), objects=2)
    assert best_f1(matches)["car"].threshold == 0.5


def test_best_f1_takes_all_of_one_score_or_none():
    matches = scored((0, 0.5), (None, 0.5), (None, 0.5), objects=1)
    assert best_f1(matches)["car"].precision == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(3))
def test_best_f1_is_what_its_threshold_gives_and_no_other_is_better(seed):
    matches = average_precision(*example(seed)).matches
    for name, best in best_f1(matches).items():
        assert at_thresholds(matches, best.threshold)[name] == best
        others = [at_thresholds(matches, t)[name].f1 for t in np.linspace(0, 1, 101)]
        assert best.f1 >= max(others)


def write(path, ground_truth, **changes):
    path.write_text(json.dumps(as_coco(ground_truth) | changes))
    return path


def test_reading_ground_truth(tmp_path):
    ground_truth, predictions = example()
    read = read_ground_truth(write(tmp_path / "a.json", ground_truth))
    assert read.classes == CLASSES
    assert average_precision(read, predictions).ap50 == pytest.approx(average_precision(ground_truth, predictions).ap50)


def test_objects_of_other_classes_are_counted(tmp_path):
    ground_truth, _ = example()
    read = read_ground_truth(write(tmp_path / "a.json", ground_truth), ["person"])
    cars = sum(((i.labels == 0) & ~i.ignore).sum() for i in ground_truth.images)
    assert read.left_out == {"car": cars}


BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]}


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (BOX | {"image_id": 99}, r"(?s)a\.json.*annotations\[0\]: `image_id` 99 is not in `images`"),
        (BOX | {"category_id": 9}, r"annotations\[0\]: `category_id` 9 is not in `categories` \(1, 2, 3\)"),
        (BOX | {"bbox": [0, 0, 5, 0]}, r"annotations\[0\]: .* width and height must be above 0"),
        (BOX | {"bbox": [0, None, 5, 1]}, r"annotations\[0\]: `bbox` must be four finite numbers"),
    ],
)
def test_a_bad_annotation_is_named_with_its_row(tmp_path, annotation, said):
    path = write(tmp_path / "a.json", example()[0], annotations=[annotation])
    with pytest.raises(DataError, match=said):
        read_ground_truth(path)


@pytest.mark.parametrize(
    ("part", "row", "said"),
    [
        ("images", {"file_name": "a.jpg"}, r"(?s)a\.json.*images\[0\]: lacks `id`"),
        ("categories", {"id": 1}, r"(?s)a\.json.*categories\[0\]: lacks `name`"),
        ("images", None, r"(?s)a\.json.*images\[1\]: id 1 is already that of images\[0\]"),
    ],
)
def test_rows_without_id_or_with_a_repeated_id_are_refused(tmp_path, part, row, said):
    path = write(tmp_path / "a.json", example()[0])
    document = json.loads(path.read_text())
    first = document[part][0] | ({"id": 1} if part == "images" else {})
    document[part] = [first, first] if row is None else [row]
    document["annotations"] = []
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=said):
        read_ground_truth(path)


def test_boxes_over_the_border_are_clipped_as_in_training(tmp_path):
    image = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 60}
    boxes = [BOX | {"bbox": [-30, 5, 60, 20]}, BOX | {"id": 2, "bbox": [80, 50, 40, 20]}]
    read = read_ground_truth(write(tmp_path / "a.json", example()[0], images=[image], annotations=boxes))
    assert read.images[0].boxes.tolist() == [[0, 5, 30, 25], [80, 50, 100, 60]]


def test_a_box_outside_its_image_is_refused(tmp_path):
    image = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 60}
    path = write(tmp_path / "a.json", example()[0], images=[image], annotations=[BOX | {"bbox": [100, 5, 60, 20]}])
    with pytest.raises(DataError, match=r"annotations\[0\]: .* outside its image"):
        read_ground_truth(path)


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = write(tmp_path / "a.json", example()[0])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_ground_truth(path).images) == len(example()[0].images)


@pytest.mark.parametrize(("objects", "labels"), [(0, [0, 1]), (1, [])])
def test_regions_of_a_category_without_objects_are_regions_for_all_classes(objects, labels, tmp_path):
    image = {"id": 1, "file_name": "a.jpg"}
    categories = [{"id": 1, "name": "dont-care"}, {"id": 2, "name": "car"}]
    boxes = [BOX | {"iscrowd": 1}, *[BOX | {"id": 2}] * objects]
    path = write(tmp_path / "a.json", example()[0], images=[image], annotations=boxes, categories=categories)
    found = read_ground_truth(path, ["car", "bus"]).images[0]
    assert found.labels.tolist() == labels
    assert found.ignore.all()


def test_ignore_flag_is_read_like_crowd(tmp_path):
    path = write(tmp_path / "a.json", example()[0], annotations=[BOX | {"ignore": 1}])
    assert read_ground_truth(path).images[0].ignore.tolist() == [True]


def test_a_file_that_is_no_coco(tmp_path):
    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(DataError, match=r"(?s)categories: is missing.*annotations: is missing"):
        read_ground_truth(tmp_path / "a.json")
