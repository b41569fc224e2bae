"""`cahqp cycle run --dry-run` checks weights, classes, boxes and sizes of a plan."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from cahqp.__main__ import main


@pytest.fixture
def plan(recordings, configs, teacher, student, tmp_path, monkeypatch):
    """Values of a plan of real files, whose labels a test may change at `day/annotations.json`."""
    shutil.copytree(recordings["day"].parent, tmp_path / "day")
    monkeypatch.chdir(tmp_path)
    return {
        "name": "tiny",
        "source": {"train": ["day/annotations.json"], "val": [str(recordings["val"])]},
        "target": {"train": [str(recordings["night"].parent / "images")]},
        "teacher": {"weights": str(teacher), "adapt": [str(configs["adapt"])]},
        "student": {"weights": str(student), "retrain": [str(configs["retrain"])]},
    }


@pytest.fixture
def dry(plan, capsys):
    """Run the plan with `--dry-run`; return the exit code and the error."""

    def run():
        Path("plan.yaml").write_text(yaml.safe_dump(plan))
        return main(["cycle", "run", "--plan", "plan.yaml", "--dry-run"]), capsys.readouterr().err

    return run


def change(**keys):
    path = Path("day/annotations.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_plan_of_files_that_fit_together(dry):
    assert dry() == (0, "")


def test_labels_of_other_classes(dry):
    categories = json.loads(Path("day/annotations.json").read_text())["categories"]
    change(categories=[{**category, "name": f"my {category['name']}"} for category in categories])
    code, told = dry()
    assert code == 1 and "which are not classes of the detector" in told and "my car" in told


def test_labels_without_boxes(dry):
    change(annotations=[])
    assert "source.train: day/annotations.json has no boxes of car" in dry()[1]


def test_weights_that_cannot_be_read_and_a_folder_without_images_come_together(dry, plan, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    (tmp_path / "bare").mkdir()
    plan["student"]["weights"] = "cut.safetensors"
    plan["target"]["train"] = ["bare"]
    code, told = dry()
    assert code == 1 and "2 problems" in told and "cut.safetensors" in told and "bare contains no images" in told


def test_models_of_different_classes(dry, plan, configs):
    config = yaml.safe_load(configs["student"].read_text())
    config["model"]["init_args"]["detector"]["init_args"]["classes"] = ["car", "person"]
    Path("student.yaml").write_text(yaml.safe_dump(config))
    plan["student"] |= {"weights": None, "fit": ["student.yaml"]}
    assert "need the same classes in the same order" in dry()[1]


def test_an_impossible_size(dry, plan):
    values = {"model": {"init_args": {"detector": {"init_args": {"size": [64, "wide"]}}}}}
    Path("size.yaml").write_text(yaml.safe_dump(values))
    plan["student"] |= {"weights": None, "fit": ["size.yaml"]}
    assert "student: size must be [height, width] in pixels" in dry()[1]


def test_images_of_another_size_than_their_entries(dry):
    images = json.loads(Path("day/annotations.json").read_text())["images"]
    change(images=[{**image, "width": 2 * image["width"]} for image in images])
    assert "is 96x64 pixels, but its annotations are for 192x64. Correct `width` and `height`" in dry()[1]
