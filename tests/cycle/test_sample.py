import json
import runpy
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cahqp.__main__ import main
from cahqp.cycle.sample import choose_frames
from cahqp.drift.signals import join_signals, read_signals, write_signals

stream = runpy.run_path(str(Path(__file__).parents[1] / "drift" / "signal_streams.py"))["stream"]
EVEN = {"uncertainty": 1.0, "novelty": 1.0, "spread": 1.0}


def rows(signals, budget, known=None, **weights):
    return [row for row, _ in choose_frames(signals, budget, known, **{**dict.fromkeys(EVEN, 0.0), **weights})]


def test_the_undecided_come_first():
    signals = stream(40)
    chosen = rows(signals, 5, uncertainty=1.0)
    assert set(chosen) == set(np.argsort(-signals.uncertainty)[:5].tolist())


def test_spread_leaves_no_long_gap():
    chosen = rows(stream(60), 6, spread=1.0)
    assert max(np.diff([-1, *chosen, 60])) <= 20


def test_novelty_takes_the_odd_ones():
    odd = stream(3, seed=3, shift=6.0)
    chosen = rows(join_signals([stream(40), odd]), 4, known=stream(40, seed=9), novelty=1.0)
    assert set(chosen) & {40, 41, 42}


def test_cameras_share_the_budget_and_leave_what_they_lack():
    signals = join_signals([stream(2, camera="a"), stream(30, camera="b"), stream(30, camera="c")])
    chosen = [signals.cameras[row] for row, _ in choose_frames(signals, 12, **EVEN)]
    assert {camera: chosen.count(camera) for camera in "abc"} == {"a": 2, "b": 5, "c": 5}


@pytest.fixture
def seen(tmp_path):
    signals = stream(24)
    signals = replace(signals, readable=np.arange(24) != 7)
    for name in signals.names:
        path = tmp_path / "frames" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((6, 9, 3), 50, np.uint8))
    (tmp_path / "features").mkdir()
    write_signals(tmp_path / "features", signals, "../frames")
    return tmp_path


def sample(folder, *more):
    return main(["sample", "--features", str(folder / "features"), f"--output={folder / 'out'}", "--budget=6", *more])


def test_the_command_writes_frames_with_their_features(seen):
    assert sample(seen) == 0
    images = json.loads((seen / "out/frames.json").read_text())["images"]
    assert len(images) == 6
    assert all((seen / "out/images" / image["file_name"]).is_file() for image in images)
    assert (images[0]["height"], images[0]["width"]) == (6, 9)
    assert read_signals(seen / "out").names == [image["file_name"] for image in images]
    assert 7 not in {image["frame"] for image in images}


def test_only_what_has_drifted(seen, capsys):
    (seen / "drift").mkdir()
    manifest = {"command": "drift", "version": "0", "seed": 0, "settings": {"window": 6}}
    (seen / "drift/manifest.json").write_text(json.dumps(manifest | {"inputs": {}, "metrics": {}, "outputs": {}}))
    found = {"cameras": {"north": {"verdict": "drift", "since": 2}}, "groups": []}
    (seen / "drift/drift.json").write_text(json.dumps(found))
    assert sample(seen, f"--drift={seen / 'drift'}") == 0
    assert min(i["frame"] for i in json.loads((seen / "out/frames.json").read_text())["images"]) >= 12


def test_a_camera_that_is_not_there_is_named(seen, capsys):
    assert sample(seen, "--cameras", "south") == 1
    assert "--cameras south are not among the frames" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/hostname"])
def test_features_that_name_a_file_elsewhere_are_refused(tmp_path, capsys, name):
    (tmp_path / "f").mkdir()
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "secret.jpg"), np.zeros((8, 8, 3), np.uint8))
    write_signals(tmp_path / "f", replace(stream(4), names=[name] * 4), "../images")
    assert main(["sample", f"--features={tmp_path / 'f'}", f"--output={tmp_path / 's'}", "--budget=2"]) == 1
    assert "not a name inside a folder" in capsys.readouterr().err
