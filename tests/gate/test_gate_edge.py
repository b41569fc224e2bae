"""The gate on what a package does at the edge: its own thresholds, and models that fail at work."""

import json

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cahqp.__main__ import main
from cahqp.edge.package import MODEL, read_package, write_manifest
from cahqp.edge.runtime import Runtime
from cahqp.errors import WeightsError
from cahqp.evaluation.bootstrap import Groups
from cahqp.evaluation.matching import ClassMatches, Matches
from cahqp.gate.decision import OperatingEvidence, RuntimeCost, SetEvidence, decide
from cahqp.gate.operating_point import compare_f1
from cahqp.gate.options import GateLimits

CLASSES = ["car", "bus"]
BOXES = np.array([[[0.2, 0.3, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.8, 0.7, 0.2, 0.2]]], np.float32)
LOGITS = np.array([[[2, -9], [-9, 2.5], [2.2, -9]]], np.float32)
SAME = RuntimeCost(10, 5)


def package(path, logits=LOGITS, boxes=BOXES, thresholds=None, fails=False):
    """A package whose model says the same of every frame; with `fails` it looks for a row that is not there."""
    path.mkdir()
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in (("logits", logits), ("all" if fails else "boxes", boxes))
    ]
    if fails:
        nodes += [
            helper.make_node("Cast", ["images"], ["whole"], to=TensorProto.INT64),
            helper.make_node("ReduceMax", ["whole"], ["max_frames"], keepdims=0),
            helper.make_node("Constant", [], ["far"], value=numpy_helper.from_array(np.array([99], np.int64))),
            helper.make_node("Add", ["max_frames", "far"], ["row"]),
            helper.make_node("Gather", ["all", "row"], ["one"], axis=1),
            helper.make_node("Add", ["all", "one"], ["boxes"]),
        ]
    shapes = {"logits": logits.shape, "boxes": boxes.shape}
    graph = helper.make_graph(
        nodes, "fixed", [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 12])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in shapes.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path / MODEL)
    rule = {"batch": 1, "height": 8, "width": 12, "mean": [0, 0, 0], "std": [1, 1, 1], "short_side": None}
    described = {
        "architecture": "RTDETR", "classes": CLASSES, "input": {**rule, "max_side": None}, "precision": "float32",
        "thresholds": thresholds or {"car": 0.4, "bus": 0.4}, "output": {"max_detections": 6}, "weights": path.name,
    }  # fmt: skip
    write_manifest(path, described)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Forty frames of ten recordings, whose truth is what the package `running` says of them."""
    root = tmp_path_factory.mktemp("gate-edge")
    package(root / "running")
    images, annotations = [], []
    for number in range(1, 41):
        cv2.imwrite(str(root / f"{number}.png"), np.full((80, 120, 3), number, np.uint8))
        where = {"recording": f"r{number % 10}", "frame": number}
        images.append({"id": number, "file_name": f"{number}.png", "width": 120, "height": 80, **where})
        for (x, y, width, height), label in zip(BOXES[0].astype(float).tolist(), (1, 2, 1), strict=True):
            bbox = [(x - width / 2) * 120, (y - height / 2) * 80, width * 120, height * 80]
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": bbox}
            annotations.append(row)
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (root / "truth.json").write_text(json.dumps(coco))
    (root / "empty.json").write_text(json.dumps(coco | {"images": [], "annotations": []}))
    return root


def given(place, candidate, output, running="running", truth="truth"):
    there = [f"--candidate={candidate}", f"--running={place / running}", f"--output={output}"]
    return [
        "gate",
        *there,
        f"--source={place / truth}.json",
        "--resamples=40",
        "--max-slowdown=50",
        "--max-growth=50",
    ]


def gate(place, candidate, output, *more):
    assert main([*given(place, candidate, output), *more]) == 0
    return json.loads((output / "decision.json").read_text())


@pytest.mark.parametrize(
    "spoilt", [{"logits": LOGITS - 4.5}, {"thresholds": {"car": 0.999, "bus": 0.999}}], ids=["faint", "strict"]
)
def test_a_candidate_that_detects_nothing_at_its_own_thresholds_is_refused(place, tmp_path, spoilt):
    said = gate(place, package(tmp_path / "bad", **spoilt), tmp_path / "g")
    assert said["sets"]["source"]["difference"] == 0
    assert not said["published"]
    assert "on source its F1 at its own thresholds is 100.0 points below" in said["reason"]
    assert said["sets"]["source"]["operating"]["candidate_f1"] == 0


def test_frames_of_another_size_than_their_labels_are_refused(place, tmp_path, capsys):
    told = json.loads((place / "truth.json").read_text())
    for image in told["images"]:
        image |= {"width": 240, "height": 160}
    (place / "large.json").write_text(json.dumps(told))
    assert main(given(place, place / "running", tmp_path / "g", truth="large")) == 1
    assert "has 120 x 80 pixels" in capsys.readouterr().err
    assert not (tmp_path / "g").exists()


def test_a_candidate_as_good_at_its_own_thresholds_is_published(place, tmp_path):
    shifted = package(tmp_path / "shifted", LOGITS - 2, thresholds={"car": 0.2, "bus": 0.2})
    said = gate(place, shifted, tmp_path / "g")
    assert said["published"], said["reason"]
    wanted = {"candidate_f1": 1.0, "running_f1": 1.0, "difference": 0.0, "high": 0.0}
    assert said["sets"]["source"]["operating"] == wanted


def test_detections_that_average_precision_leaves_out_count_where_a_threshold_lets_them_pass(place, tmp_path):
    flood = np.concatenate([LOGITS, np.full((1, 30, 2), -6, np.float32)], 1)
    boxes = np.concatenate([BOXES, np.full((1, 30, 4), 0.1, np.float32)], 1)
    path = package(tmp_path / "flood", flood, boxes, {"car": 0.001, "bus": 0.001})
    manifest = json.loads((path / "package.json").read_text())
    manifest["output"]["max_detections"] = 60
    (path / "package.json").write_text(json.dumps(manifest))
    said = gate(place, path, tmp_path / "g")
    assert said["sets"]["source"]["candidate_ap50"] == said["sets"]["source"]["running_ap50"]
    assert not said["published"]


@pytest.mark.parametrize(
    ("difference", "high", "published"),
    [(-0.06, -0.01, False), (-0.06, 0.01, True), (-0.04, -0.01, True), (-0.06, float("inf"), True)],
)
def test_a_loss_at_the_thresholds_counts_where_it_is_large_and_no_accident(difference, high, published):
    found = OperatingEvidence(0.5 + difference, 0.5, high)
    one = SetEvidence("source", "source", 0.6, 0.5, 0.05, "recordings", 12, {}, operating=found)
    assert decide([one], GateLimits(), SAME, SAME)["published"] is published


def test_the_bound_of_f1_counts_every_group_as_often_as_it_is_drawn():
    groups = Groups("recordings", np.arange(20, dtype=np.int64), 20)
    one = np.ones(20, np.int64)

    def matches(hits):
        scores = np.full(20, 0.5)
        return Matches(("car", "bus"), (ClassMatches(scores, hits, np.arange(20), one),) * 2)

    half, whole = matches(np.arange(20) % 2 == 0), matches(np.full(20, True))
    same = compare_f1(whole, whole, {"car": 0.4, "bus": 0.4}, {"car": 0.4, "bus": 0.4}, groups, seed=0, resamples=200)
    assert (same.candidate, same.running, same.high) == (1, 1, 0)
    worse = compare_f1(half, whole, {"car": 0.4, "bus": 0.4}, {"car": 0.4, "bus": 0.4}, groups, seed=0, resamples=2000)
    assert (worse.candidate, worse.running) == (0.5, 1)
    assert worse.high == pytest.approx(-0.5 + 1.73 * 0.5 / np.sqrt(19), abs=0.03)


@pytest.mark.parametrize(
    "spoilt",
    [{"boxes": BOXES[:, :2]}, {"boxes": np.concatenate([BOXES, BOXES[..., :1]], 2)}, {"fails": True}],
    ids=["few queries", "five columns", "fails"],
)
def test_a_model_that_fails_at_work_is_refused_and_as_running_one_an_error(place, tmp_path, capsys, spoilt):
    bad = package(tmp_path / "bad", **spoilt)
    with pytest.raises(WeightsError, match="bad"):
        Runtime(read_package(bad)).detect([np.zeros((8, 12, 3), np.uint8)])
    said = gate(place, bad, tmp_path / "g")
    assert not said["published"] and "Export it again" in said["reason"]
    assert main(given(place, place / "running", tmp_path / "h", bad)) == 1
    assert "Export it again" in capsys.readouterr().err
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("thresholds", {"car": "high"}),
        ("thresholds", ["high"]),
        ("output", {}),
        ("output", {"max_detections": 6, "nms_iou": "much"}),
        ("input", {"batch": 1}),
        ("classes", 2),
    ],
)
def test_a_candidate_whose_rules_cannot_be_read_is_refused(place, tmp_path, section, said):
    path = package(tmp_path / "bad")
    manifest = json.loads((path / "package.json").read_text())
    (path / "package.json").write_text(json.dumps(manifest | {section: said}))
    decision = gate(place, path, tmp_path / "g")
    assert not decision["published"] and "has invalid entries" in decision["reason"]


def test_labels_without_frames_give_no_advice(place, tmp_path):
    said = gate(place, place / "running", tmp_path / "g", f"--labels={place / 'empty.json'}")
    assert said["published"] and said["advice"] is None
