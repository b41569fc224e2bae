import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cahqp.__main__ import main
from cahqp.data.coco import read_coco_frames


@pytest.fixture
def incoming(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for camera in ("north", "south"):
        for number in range(2):
            path = Path("incoming") / camera / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((8, 12, 3), 9, np.uint8))
    Path("incoming/north/.half.jpg").write_bytes(b"half")
    Path("incoming/north/notes.txt").write_text("no frame")
    return tmp_path


def images(folder):
    return json.loads(Path(folder, "frames.json").read_text())["images"]


def test_a_folder_is_taken_once(incoming):
    assert main(["fetch", "--frames=incoming", "--output=one"]) == 0
    assert len(images("one")) == 4
    assert {image["camera"] for image in images("one")} == {"north", "south"}
    assert len(read_coco_frames(Path("one/frames.json"))) == 4
    cv2.imwrite("incoming/south/9.jpg", np.full((8, 12, 3), 9, np.uint8))
    assert main(["fetch", "--frames=incoming", "--output=two", "--after", "one"]) == 0
    assert [image["file_name"] for image in images("two")] == ["south/9.jpg"]


def test_a_later_change_of_the_folder_does_not_reach_what_was_fetched(incoming):
    assert main(["fetch", "--frames=incoming", "--output=one"]) == 0
    before = Path("one/images/north/0.jpg").read_bytes()
    Path("incoming/north/0.jpg").write_bytes(b"other")
    assert Path("one/images/north/0.jpg").read_bytes() == before


def test_nothing_new_and_nowhere_are_told(incoming, capsys):
    assert main(["fetch", "--frames=incoming", "--output=one"]) == 0
    assert main(["fetch", "--frames=incoming", "--output=two", "--after", "one"]) == 1
    assert "has no new image or video" in capsys.readouterr().err
    assert main(["fetch", "--frames=gone", "--output=three"]) == 1
    assert "gone is no folder" in capsys.readouterr().err


def test_videos_become_images(incoming):
    film = cv2.VideoWriter("incoming/north/film.avi", cv2.VideoWriter.fourcc(*"MJPG"), 4, (32, 16))
    for number in range(12):
        film.write(np.full((16, 32, 3), 20 * number, np.uint8))
    film.release()
    assert main(["fetch", "--frames=incoming", "--output=one", "--every=1"]) == 0
    frames = [image for image in images("one") if image["recording"] == "north/film"]
    assert [round(frame["timestamp"]) for frame in frames] == [0, 1, 2]
    assert {frame["camera"] for frame in frames} == {"north"}
