"""`cahqp init` through the front door, on recordings of one session and a folder and a video that the tests make."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from cahqp.__main__ import main
from cahqp.cycle.init import command
from cahqp.runs import executor

ROOT = Path(__file__).parents[3]
DEMO = ["car", "bus", "truck", "motorcycle", "person"]


@pytest.fixture
def cameras(recordings, tmp_path, monkeypatch):
    """An empty working directory, and the command line of `init` for labelled days, a folder and a video."""
    video = cv2.VideoWriter(str(tmp_path / "cam1.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 64))
    for grey in range(20):
        video.write(np.full((64, 96, 3), 5 * grey, np.uint8))
    video.release()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    night = recordings["night"].parent / "images"
    given = ["--source", str(recordings["day"]), "--val", str(recordings["val"])]
    return ["init", "my", *given, "--target", str(night), str(tmp_path / "cam1.mp4")]


def values(name):
    return yaml.safe_load(Path("my", name).read_text())


def test_a_plan_has_the_classes_of_the_labels_and_the_size_of_the_images(cameras, capsys):
    assert main(cameras) == 0
    told = capsys.readouterr().out
    assert "cahqp cycle run --plan my/plan.yaml --dry-run" in told
    detector = values("configs/teacher.yaml")["model"]["init_args"]["detector"]["init_args"]
    assert detector["size"] == [64, 96]
    assert set(detector["classes"]) <= set(DEMO)
    assert (
        values("configs/student.yaml")["model"]["init_args"]["detector"]["init_args"]["classes"] == detector["classes"]
    )
    assert values("plan.yaml")["target"]["frame_interval"] == 1.0


def test_guesses_have_comments(cameras):
    assert main(cameras) == 0
    text = Path("my/configs/teacher.yaml").read_text()
    assert "boxes in your files: car" in text and "your images are 64 x 96" in text


@pytest.mark.parametrize("more", [[], ["--smoke"]])
def test_the_plan_passes_its_dry_run(more, cameras, capsys):
    assert main([*cameras, *more]) == 0
    assert main(["cycle", "run", "--plan", "my/plan.yaml", "--dry-run"]) == 0
    assert "cahqp report --run=runs/my" in capsys.readouterr().out


@pytest.mark.slow
def test_the_smoke_plan_runs_all_stages(cameras, capsys, monkeypatch):
    assert main([*cameras, "--smoke"]) == 0
    # In this process, which pays the imports once.
    monkeypatch.setattr(executor, "PROGRAM", ("cahqp",))
    monkeypatch.setattr(executor.process, "execute", lambda words, log, watch: main([*words[1:]]))
    assert main(["cycle", "run", "--plan", "my/plan.yaml"]) == 0
    assert "Published" in capsys.readouterr().out
    assert Path("runs/my/report/report.html").is_file()


def test_a_plan_is_never_overwritten(cameras, capsys):
    assert main(cameras) == 0
    assert main(cameras) == 1
    assert "plan.yaml exists already. Give another folder" in capsys.readouterr().err


def test_a_failed_init_can_be_repeated(cameras, capsys):
    assert main([*cameras, "--test", "nowhere.json"]) == 1
    assert not Path("my").exists()
    assert main(cameras) == 0


def test_frames_without_labels_are_refused_as_source(cameras, recordings, capsys, tmp_path):
    document = json.loads(recordings["day"].read_text()) | {"annotations": []}
    (tmp_path / "day.json").write_text(json.dumps(document))
    (tmp_path / "source.json").write_text(json.dumps({"root": "work/images"}))
    Path("images").symlink_to(recordings["day"].parent / "images")
    assert main([str(tmp_path / "day.json") if word == str(recordings["day"]) else word for word in cameras]) == 1
    assert "there are no boxes. Give files with labels" in capsys.readouterr().err


PAIRS = {
    ("cpu", "teacher.yaml"): "teacher/demo.yaml",
    ("cpu", "teacher_adapt.yaml"): "teacher/demo_adapt.yaml",
    ("cpu", "student.yaml"): "student/demo.yaml",
    ("cpu", "student_retrain.yaml"): "student/demo_retrain.yaml",
    ("paper", "teacher.yaml"): "teacher/bellevue.yaml",
    ("paper", "teacher_adapt.yaml"): "teacher/bellevue_adapt.yaml",
    ("paper", "student.yaml"): "student/bellevue.yaml",
    ("paper", "student_retrain.yaml"): "student/bellevue_retrain.yaml",
}


@pytest.mark.parametrize(("preset", "name"), PAIRS)
def test_templates_have_the_settings_of_the_shipped_configs(preset, name):
    shipped = yaml.safe_load((ROOT / "configs" / PAIRS[preset, name]).read_text())
    classes = shipped["model"]["init_args"].get("detector", {}).get("init_args", {}).get("classes", [])
    notes = dict.fromkeys(("boxes", "size_note", "image_note", "start", "start_file", "start_note"), "")
    given = {"preset": preset, "classes": classes, "size": [128, 224], "frames": 100, "max_gap": 3.0}
    more = {"ignored": [], "later_block": False}
    text = command.environment("my", False).get_template(name).render(given | notes | more)
    assert yaml.safe_load(text) == shipped
