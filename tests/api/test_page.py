"""The code of docs/python.md, run from top to bottom."""

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clips import encode
from PIL import Image

from cahqp.detectors import model_file

ROOT = Path(__file__).parents[2]


def save_with_higher_scores(source, target):
    """Copy a model that was trained for a moment, such that it detects something."""
    detector = model_file.load(source)
    with torch.no_grad():
        for head in detector.class_heads:
            head.bias += 4.0
    detector.thresholds = dict.fromkeys(detector.classes, 0.1)
    model_file.save(target, detector)


@pytest.fixture
def folder(tmp_path, monkeypatch, recordings, configs, teacher, student):
    """A working directory with all that the page names."""
    for name in ("configs", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, path in (("teacher", teacher), ("student", student), ("model", student)):
        save_with_higher_scores(path, tmp_path / f"{name}.safetensors")
    for name in ("adapt", "retrain"):
        text = configs[name].read_text().replace("max_epochs: 3", "max_epochs: 1")
        (tmp_path / f"{name}.yaml").write_text(text)
    frames = recordings["night"].parent / "images"
    shutil.copytree(frames, tmp_path / "frames")
    for name in ("day", "night"):
        shutil.copytree(recordings[name].parent / "images", tmp_path / "images", dirs_exist_ok=True)
        shutil.copy(recordings[name], tmp_path / f"{name}.json")
    Image.open(sorted(frames.rglob("*.png"))[0]).save(tmp_path / "frame.jpg")
    encode(tmp_path / "night.mp4", "libx264", [0, 100])
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=dict))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_code_of_the_page_runs(folder, capsys):
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(block, names)
    assert (folder / "drawn/frame.jpg").is_file() and (folder / "runs/student/model.safetensors").is_file()
    assert "missing.jpg does not exist" in capsys.readouterr().out
