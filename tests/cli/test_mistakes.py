"""Fifteen mistakes of newcomers: each ends in one message of at most six lines that names the remedy."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from cahqp.__main__ import main

ROOT = Path(__file__).parents[2]
PLAN = {
    "name": "tiny",
    "source": {"train": ["data/day.json"], "val": ["data/day.json.val.json"]},
    "target": {"train": ["data/night"]},
    "teacher": {"fit": ["data/fit.yaml"], "adapt": ["data/fit.yaml"]},
    "student": {"fit": ["data/fit.yaml"], "retrain": ["data/fit.yaml"]},
}


def misspelt_option(fit, place):
    return [*fit, "--trainer.max_epoks=3"], "Did you mean --trainer.max_epochs?"


def missing_path(fit, place):
    return [*fit, f"--data.train={place / 'nowhere.json'}"], "nowhere.json"


def missing_bracket(fit, place):
    return [*fit, "--data.train=[day.json"], "--data.train day.json"


def labels_of_other_classes(fit, place):
    document = json.loads((place / "day.json").read_text())
    for number, category in enumerate(document["categories"]):
        category["name"] = f"kind {number}"
    (place / "other.json").write_text(json.dumps(document))
    return [*fit, f"--data.train={place / 'other.json'}"], "ignore_categories"


def no_labels(fit, place):
    document = json.loads((place / "day.json").read_text()) | {"annotations": []}
    (place / "bare.json").write_text(json.dumps(document))
    return [*fit, f"--data.train={place / 'bare.json'}"], "no boxes to train on"


def a_gpu_asked_for(fit, place):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    return [*fit, "--trainer.accelerator=gpu"], "--trainer.accelerator cpu"


def plan_run_from_another_folder(fit, place):
    (place / "data").mkdir()
    for name in ("day.json", "day.json.val.json", "fit.yaml"):
        (place / "data" / name).write_text("{}")
    (place / "data/night").mkdir()
    (place / "data/plan.yaml").write_text(yaml.safe_dump(PLAN))
    return ["cycle", "run", "--plan", str(place / "data/plan.yaml")], f"cd {place}"


def file_given_for_a_folder(fit, place):
    (place / "notes.txt").write_text("no frames")
    weights = str(ROOT / "weights/demo-teacher.safetensors")
    return [
        "relabel",
        "--weights",
        weights,
        "--frames",
        str(place / "notes.txt"),
        "--accelerator=cpu",
    ], "folder of images"


def interrupted_first_run(fit, place):
    partial = place / "run.partial"
    partial.mkdir()
    identity = {"command": "fit", "version": "0", "seed": 7, "settings": {}, "inputs": {}}
    (partial / "identity.json").write_text(json.dumps(identity))
    return fit, "Choose another --output, or remove"


def another_runs_folder(fit, place):
    assert main([*fit, f"--output={place / 'run'}", "--trainer.max_epochs=1"]) == 0
    return [*fit, "--seed=5"], "Choose another --output"


def paths_of_windows(fit, place):
    document = json.loads((place / "day.json").read_text())
    for image in document["images"]:
        image["file_name"] = "C:\\data\\" + image["file_name"].replace("/", "\\")
    (place / "windows.json").write_text(json.dumps(document))
    return [*fit, f"--data.train={place / 'windows.json'}"], "Windows"


def video_for_labelled_frames(fit, place):
    (place / "night.mp4").write_bytes(b"video")
    return [*fit, f"--data.train={place / 'night.mp4'}"], "COCO"


def empty_folder(fit, place):
    (place / "empty").mkdir()
    weights = str(ROOT / "weights/demo-teacher.safetensors")
    return ["relabel", "--weights", weights, "--frames", str(place / "empty"), "--accelerator=cpu"], ".jpg"


def package_given_as_weights(fit, place):
    (place / "package").mkdir()
    (place / "package/package.json").write_text("{}")
    frames = str(place / "images")
    return ["relabel", "--weights", str(place / "package"), "--frames", frames, "--accelerator=cpu"], "model file"


def frames_and_weights_swapped(fit, place):
    weights = str(ROOT / "weights/demo-teacher.safetensors")
    return ["evaluate", "--weights", f"a={place / 'day.json'}", "--frames", f"b={weights}"], "model file"


MISTAKES = [
    misspelt_option, missing_path, missing_bracket, labels_of_other_classes, no_labels, a_gpu_asked_for,
    plan_run_from_another_folder, file_given_for_a_folder, interrupted_first_run, another_runs_folder,
    paths_of_windows, video_for_labelled_frames, empty_folder, package_given_as_weights, frames_and_weights_swapped,
]  # fmt: skip


@pytest.fixture
def place(recordings, tmp_path, monkeypatch):
    shutil.copytree(recordings["day"].parent / "images", tmp_path / "images")
    shutil.copy(recordings["day"], tmp_path / "day.json")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_ends_in_one_short_message(mistake, arguments, place, capsys):
    words, remedy = mistake(arguments("fit"), place)
    capsys.readouterr()
    output = [] if words[0] == "cycle" else [f"--output={place / 'run'}"]
    assert main([*words, *output]) != 0
    told = capsys.readouterr().err
    said = told[told.index(f"cahqp {words[0]}") :]
    assert remedy in said, said
    assert len(said.splitlines()) <= 6, said
    assert "Traceback" not in told


@pytest.mark.parametrize("mistake", [missing_path, labels_of_other_classes, no_labels, a_gpu_asked_for])
def test_a_corrected_command_may_use_the_same_output(mistake, arguments, place):
    words, _ = mistake(arguments("fit"), place)
    assert main([*words, f"--output={place / 'run'}"]) != 0
    assert not (place / "run.partial").exists()


def relabel(fit, place, weights):
    frames = ["--frames", str(place / "images"), "--accelerator=cpu"]
    return ["relabel", "--weights", str(weights), *frames], place / "run"


def quality(fit, place, weights):
    return ["quality", "--labels", str(place / "nothing.json")], place / "run"


def evaluate(fit, place, weights):
    return ["evaluate", "--weights", f"a={place / 'day.json'}", "--frames", f"b={place / 'day.json'}"], place / "run"


def export(fit, place, weights):
    return ["export", "--weights", str(place / "day.json")], place / "run"


def gate(fit, place, weights):
    nothing = str(place / "nothing")
    return ["gate", "--candidate", nothing, "--running", nothing, "--source", str(place / "day.json")], place / "run"


def cycle_run(fit, place, weights):
    (place / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    return ["cycle", "run", "--plan", str(place / "plan.yaml")], place / "run"


def importing(fit, place, weights):
    return ["import", "coco", str(place / "nothing.json"), "--images", str(place / "images")], place / "run"


def inspect(fit, place, weights):
    (place / "empty.json").write_text("{}")
    return ["inspect", str(place / "empty.json")], place / "run"


def init(fit, place, weights):
    day = str(place / "nothing.json")
    return ["init", str(place / "run"), "--source", day, "--val", day, "--target", str(place / "images")], None


@pytest.mark.parametrize("command", [relabel, quality, evaluate, export, gate, cycle_run, importing, inspect, init])
def test_a_command_that_fails_before_it_begins_leaves_nothing(command, place, capsys):
    (place / "weights").mkdir()
    words, output = command(None, place, place / "weights/nothing.safetensors")
    assert main([*words, *([f"--output={output}"] if output else [])]) == 1, capsys.readouterr().err
    assert "Traceback" not in capsys.readouterr().err
    left = sorted(path.name for path in place.iterdir() if path.name.startswith("run"))
    assert left == []
