import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from cahqp.__main__ import main
from cahqp.errors import DataError
from cahqp.evaluation.ground_truth import GroundTruth, GroundTruthImage
from cahqp.frame import View
from cahqp.labels.calibration.file import read_calibration
from cahqp.labels.calibration.thresholds import NEVER, for_f1
from cahqp.labels.candidates import Candidates
from cahqp.labels.formats.coco import read_label_file
from cahqp.relabelling import calibrate as calibrating
from cahqp.relabelling.calibrate import suppressed_evidence
from cahqp.relabelling.tta import ViewFrames, _is_cut

WEIGHTS = Path(__file__).parents[2] / "weights" / "demo-teacher.safetensors"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A calibration of the demo's teacher, and frames 0.2 s apart; never written to but in folders of a test's own."""
    root = tmp_path_factory.mktemp("refining")
    size = ["--width=112", "--height=64", "--frames=8", "--recordings=2", "--interval=0.2"]
    assert main(["scenes", f"--output={root / 'day'}", "--seed=4", *size]) == 0
    given = [f"--frames={root / 'day' / 'annotations.json'}", f"--output={root / 'calibration'}"]
    assert main(["calibrate", f"--weights={WEIGHTS}", *given, "--uncalibrated=person"]) == 0
    return root


def relabelled(root, name, *more, frames="annotations.json"):
    given = [f"--weights={WEIGHTS}", f"--frames={root / 'day' / frames}", f"--output={root / name}"]
    return main(["relabel", *given, "--accelerator=cpu", *more])


def kept(root, name):
    return [box for image in read_label_file(root / name).images for box in image.boxes if not box.ignored]


def test_calibration_says_what_it_reaches(root):
    told = json.loads((root / "calibration" / "calibration.json").read_text())
    found = {name: own for name, own in told["measured"]["per_class"].items() if own["own_curve"]}
    assert len(found) == 4
    assert all(own["after"] < own["before"] for own in found.values())
    assert told["measured"]["held_out"]["recordings"] == 2
    assert not told["curves"]["person"]["own"]
    assert "calibration error" in (root / "calibration" / "calibration.html").read_text()


def test_a_refused_calibration_leaves_nothing_behind(root, capsys):
    given = [f"--weights={WEIGHTS}", f"--frames={root / 'day' / 'annotations.json'}", f"--output={root / 'no'}"]
    assert main(["calibrate", *given, "--uncalibrated=lorry"]) == 1
    assert "--uncalibrated names lorry" in capsys.readouterr().err
    assert not list(root.glob("no*"))


def test_a_half_that_is_too_small_leaves_its_error_unknown_and_the_calibration_whole(root, monkeypatch, capsys):
    given = [f"--weights={WEIGHTS}", f"--frames={root / 'day' / 'annotations.json'}", f"--output={root / 'halves'}"]

    def fit(method, scores, hits, lent=()):
        raise DataError("Calibration needs more.")

    monkeypatch.setattr(calibrating, "fit", fit)  # what the halves call; the curves of all frames are made elsewhere
    assert main(["calibrate", *given, "--uncalibrated=person"]) == 0
    assert "unknown. One half of the recordings is too small. Calibration needs more." in capsys.readouterr().out
    told = json.loads((root / "halves" / "calibration.json").read_text())
    assert told["measured"]["held_out"]["before"] is None
    assert told["curves"]["car"]["own"]
    assert "too small" in (root / "halves" / "calibration.html").read_text()


def test_asked_precision_and_a_report_of_it(root):
    more = [
        f"--calibration={root / 'calibration'}",
        "--target-precision=0.8",
        "--ignore-share=0.5",
        "--weight-by-score",
    ]
    assert relabelled(root, "precise", *more) == 0
    boxes = kept(root, "precise")
    assert boxes
    assert all(0 <= box.more["weight"] <= 1 for box in boxes)
    ground_truth = root / "day" / "annotations.json"
    given = [
        f"--labels={root / 'precise'}",
        f"--ground-truth={ground_truth}",
        f"--source={ground_truth}",
        "--pictures=1",
    ]
    given += [f"--calibration={root / 'calibration'}", f"--output={root / 'quality'}"]
    assert main(["quality", *given]) == 0
    told = json.loads((root / "quality" / "quality.json").read_text())
    assert told["measured"]["precision"] >= 0.77
    assert sum(told["labels"].values()) == len(boxes)
    assert sum(told["doubtful"].values()) > 0
    assert set(told["drift"]) == set(told["balance"]) == set(told["labels"])
    assert max(found["distance"] for found in told["drift"].values()) < 0.05  # these are the calibration's own frames
    assert "<svg" in (root / "quality" / "quality.html").read_text()


def test_drift_is_told_of_labels_that_were_made_with_the_calibration_alone(root, capsys):
    assert relabelled(root, "without", "--threshold=0.2") == 0
    given = [f"--labels={root / 'without'}", f"--calibration={root / 'calibration'}", f"--output={root / 'no-drift'}"]
    assert main(["quality", *given]) == 1
    assert "were not made with" in capsys.readouterr().err
    assert not (root / "no-drift").exists()


def test_images_that_could_not_be_read_are_left_out_of_the_comparison(root, tmp_path):
    shutil.copytree(root / "day", tmp_path / "day")
    shutil.copytree(root / "calibration", tmp_path / "calibration")
    ground_truth = tmp_path / "day" / "annotations.json"
    broken = json.loads(ground_truth.read_text())["images"][3]["file_name"]
    (tmp_path / "day" / "images" / broken).write_bytes(b"")
    assert relabelled(tmp_path, "run", "--threshold=0.2", "--max-invalid-share=0.1") == 0
    given = [f"--labels={tmp_path / 'run'}", f"--ground-truth={ground_truth}", f"--output={tmp_path / 'quality'}"]
    assert main(["quality", *given]) == 0
    assert json.loads((tmp_path / "quality" / "quality.json").read_text())["measured"]["unreadable"] == 1
    assert "1 image of the ground truth could not be read" in (tmp_path / "quality" / "quality.html").read_text()


def test_time_formats_and_the_frames_worth_a_look(root):
    assert relabelled(root, "timed", "--temporal", "--threshold=0.2", "--format", "yolo", "cvat", "label-studio") == 0
    decisions = json.loads((root / "timed" / "decisions.json").read_text())
    assert decisions["temporal"]["recordings"] == 2
    assert all(box.track is not None for box in kept(root, "timed"))
    for name in ("yolo/data.yaml", "cvat/annotations.xml", "label-studio/tasks.json"):
        assert (root / "timed" / name).is_file()
    mistakes = [frame["mistakes"] for frame in json.loads((root / "timed" / "review.json").read_text())["frames"]]
    assert mistakes == sorted(mistakes, reverse=True)
    assert len(mistakes) == 16


ALL = [
    "--temporal",
    "--stationary-weight=0.5",
    "--ignore-share=0.6",
    "--views=flip",
    "--threshold=0.2",
    "--batch-size=2",
]


@pytest.mark.long
def test_killed_at_twenty_moments_it_ends_the_same_and_labels_nothing_twice(root, killed_after, contents, monkeypatch):
    """All options together. Each run is killed once, at a moment of its own, and once more when it goes on."""
    began = time.monotonic()
    assert relabelled(root, "whole", *ALL) == 0
    lasted, whole = time.monotonic() - began, contents(root / "whole")
    looked = []
    look = ViewFrames.__getitem__
    monkeypatch.setattr(ViewFrames, "__getitem__", lambda self, row: look(self, looked.append(row) or row))
    moments = np.random.default_rng(0).uniform(0, lasted, (10, 2))
    stopped = 0
    for number, pair in enumerate(moments):
        output, work = root / f"killed{number}", root / f"killed{number}.partial"
        given = ["relabel", f"--weights={WEIGHTS}", f"--frames={root / 'day' / 'annotations.json'}", *ALL]
        given += [f"--output={output}", "--accelerator=cpu"]
        stopped += sum(killed_after(given, seconds) == -signal.SIGKILL for seconds in pair)
        shards = [path.read_bytes() for path in sorted((work / "checkpoints" / "shards").glob("*.jsonl"))]
        done = sum(text.count(b"\n") for text in shards)
        looked.clear()
        assert main(given) == 0
        assert contents(output) == whole
        assert len(looked) <= 16 - done or not shards
    assert stopped >= 15


def test_frames_without_time_are_left_alone_and_it_is_said(root, capsys):
    assert relabelled(root, "plain", "--threshold=0.2", "--ignore-share=0.9", frames="images") == 0
    assert relabelled(root, "folder", "--threshold=0.2", "--ignore-share=0.9", "--temporal", frames="images") == 0
    assert "No tracks in 2 recordings: frames without a time stamp" in capsys.readouterr().out
    assert (root / "folder" / "labels.json").read_bytes() == (root / "plain" / "labels.json").read_bytes()


def test_several_looks_agree_or_do_not(root, capsys):
    assert relabelled(root, "mirrored", "--views", "flip", "--predictions", str(root / "precise" / "labels.json")) == 0
    assert "do not fit fused scores" in capsys.readouterr().out
    agreed = [box.more["agreement"] for box in kept(root, "mirrored")]
    assert agreed
    assert set(agreed) <= {0.3333, 0.6667, 1.0}


def test_thresholds_of_fused_scores_are_those_of_the_best_f1_on_the_calibrations_frames(root, capsys):
    given = [
        f"--weights={WEIGHTS}",
        f"--frames={root / 'day' / 'annotations.json'}",
        f"--output={root / 'tiled-scores'}",
    ]
    assert main(["calibrate", *given, "--uncalibrated=person", "--views", "tiles:2x1"]) == 0
    assert relabelled(root, "tiled", f"--calibration={root / 'tiled-scores'}", "--views", "tiles:2x1") == 0
    assert "do not fit" not in capsys.readouterr().out
    calibration = read_calibration(root / "tiled-scores", None, ["car"])
    scores, hits = calibration.after_nms["car"]
    kept_at = [scores >= limit for limit in np.unique(scores)]
    best = max(2 * hits[rows].sum() / (rows.sum() + calibration.objects["car"]) for rows in kept_at)
    limit = json.loads((root / "tiled" / "decisions.json").read_text())["thresholds"]["car"]
    at_limit = scores >= limit
    assert 2 * hits[at_limit].sum() / (at_limit.sum() + calibration.objects["car"]) == pytest.approx(best)


def test_a_class_without_a_hit_gets_no_label_of_fused_scores():
    assert for_f1(np.array([0.9, 0.2]), np.zeros(2, np.bool_), objects=3) == NEVER
    assert for_f1(np.array([0.9, 0.9, 0.2]), np.array([False, True, False]), objects=1) == 0.9


def test_boxes_that_a_tile_cuts_are_left_to_the_tile_that_contains_the_object():
    view = View(0, 0, 60, 50)  # the upper left part of a frame of 100 x 100
    boxes = np.array([[0.0, 0, 20, 20], [40, 10, 59.8, 20], [10, 30, 20, 50.4], [40, 10, 58, 20]])
    assert _is_cut(boxes, view, (100, 100)).tolist() == [False, True, True, False]
    assert not _is_cut(boxes, View(0, 0, 60, 50), (50, 60)).any()  # the whole frame cuts nothing


def test_a_calibration_of_other_views_is_refused(root, capsys):
    assert relabelled(root, "no", f"--calibration={root / 'calibration'}", "--views", "flip") == 1
    assert "is for other conditions: views was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--threshold=0.3", "--top-share=0.1"], "--threshold and --top-share"),
        (["--dynamic"], "--dynamic needs"),
        (["--views", "sideways"], "'sideways' is unknown"),
    ],
)
def test_options_that_cannot_be_are_refused(root, given, told, capsys):
    assert relabelled(root, "no", *given) == 1
    assert told in capsys.readouterr().err


def test_places_that_are_always_taken_lose_labels_and_say_why(root, tmp_path):
    document = json.loads((root / "day" / "annotations.json").read_text())
    still = document["images"][0]
    names = [Path(still["file_name"]).with_name(f"still-{n}.jpg") for n in range(7)]
    for name in names:
        shutil.copy(root / "day" / "images" / still["file_name"], root / "day" / "images" / name)
    document["images"] = [still | {"id": n, "file_name": str(name), "frame": n} for n, name in enumerate(names)]
    document["annotations"] = []
    (root / "day" / "still.json").write_text(json.dumps(document))
    assert relabelled(root, "stationary_weight", "--stationary-weight=0", "--threshold=0.2", frames="still.json") == 0
    assert relabelled(root, "passing", "--stationary-weight=0.999", "--threshold=0.2", frames="still.json") == 0
    assert kept(root, "stationary_weight") == [] and len(kept(root, "passing")) >= 7
    rejected = json.loads((root / "stationary_weight" / "rejected.json").read_text())["annotations"]
    taken = [box for box in rejected if box["reason"] == "place is taken in other frames"]
    assert (
        relabelled(root, "band", "--stationary-weight=0", "--threshold=0.2", "--ignore-share=0.9", frames="still.json")
        == 0
    )
    in_band = [box for image in read_label_file(root / "band").images for box in image.boxes]
    assert all(box.ignored for box in in_band) and len(in_band) >= len(taken)
    assert len(taken) >= 7 and all(box["detector_score"] >= 0.2 for box in taken)


def test_evidence_of_thresholds_is_what_calibrated_scores_leave():
    boxes, nothing = np.array([[0.0, 0, 10, 10], [0, 0, 10, 10.5]]), np.zeros(1, np.bool_)
    image = GroundTruthImage(1, "a.jpg", "north", 0, boxes[:1], np.array([0]), nothing)
    found = {1: Candidates(boxes[::-1], np.array([0.6, 0.5]), np.array([1, 0]))}  # the bus is surer, and wrong
    left = suppressed_evidence(
        GroundTruth(("car", "bus"), (image,)), found, [lambda s: s, lambda s: s / 2], nms_iou=0.7
    )
    assert left["car"][0].tolist() == [0.5] and left["car"][1].tolist() == [True]
    assert len(left["bus"][0]) == 0


def test_dynamic_thresholds_stay_on_the_frames_of_the_calibration(root):
    given = [f"--calibration={root / 'calibration'}", "--threshold=0.4", "--dynamic"]
    assert relabelled(root, "moved", *given) == 0
    told = json.loads((root / "moved" / "decisions.json").read_text())["thresholds"]
    # Scores are counted in bins of a thousandth, and one at half the threshold may fall on the other side.
    assert told == pytest.approx(dict.fromkeys(told, 0.4), rel=0.01)


def test_a_share_of_boxes_and_places_are_refused_together(root, capsys):
    assert relabelled(root, "both", "--stationary-weight=0.5", "--top-share=0.1") != 0
    assert "Give one of them" in capsys.readouterr().err


def test_a_calibration_of_another_form_is_not_taken_for_finished(root, capsys, monkeypatch):
    monkeypatch.setattr("cahqp.relabelling.calibrate.FORMAT", 3)
    given = [f"--frames={root / 'day' / 'annotations.json'}", f"--output={root / 'calibration'}"]
    assert main(["calibrate", f"--weights={WEIGHTS}", *given, "--uncalibrated=person"]) != 0
    assert "format" in capsys.readouterr().err
