import json
import runpy
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cahqp.__main__ import main
from cahqp.coco.reader import read_coco
from cahqp.cycle.replay_buffer import held_out, read_buffer
from cahqp.drift.signals import read_signals, write_signals

stream = runpy.run_path(str(Path(__file__).parents[1] / "drift" / "signal_streams.py"))["stream"]


@pytest.fixture
def domain(tmp_path):
    """Write labels, images and features of a domain; `shift` says how unlike the others it is."""

    def write(name, count=20, **how):
        folder = tmp_path / f"labels-{name}"
        images, boxes = [], []
        for number in range(count):
            path = folder / "images" / "north" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((8, 8, 3), number, np.uint8))
            named = {"file_name": f"north/{number}.jpg", "camera": "north", "frame": number}
            images.append({"id": number + 1, "height": 8, "width": 8, **named})
            boxes.append(
                {"id": number + 1, "image_id": number + 1, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.9}
            )
        document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "car"}]}
        (folder / "labels.json").write_text(json.dumps(document))
        (tmp_path / f"features-{name}").mkdir()
        write_signals(tmp_path / f"features-{name}", stream(count, **how), None)
        return [f"--labels={folder}/labels.json", f"--features={tmp_path}/features-{name}", f"--name={name}"]

    return write


@pytest.fixture
def replay(tmp_path):
    def run(given, output, buffer=None, **settings):
        flags = [
            f"--{key.replace('_', '-')}={value}" for key, value in {"capacity": 24, "share": 0.5, **settings}.items()
        ]
        flags += [f"--buffer={tmp_path / buffer}"] if buffer else []
        assert main(["replay", *given, f"--output={tmp_path / output}", *flags]) == 0
        return tmp_path / output

    return run


def counts(directory):
    return {d.name: d.frames for d in read_buffer(directory)}


def test_the_buffer_stays_bounded_and_the_oldest_go_first(domain, replay):
    replay(domain("day"), "one")
    assert counts(replay(domain("night", shift=2.0), "two", "one")) == {"day": 12, "night": 12}
    third = replay(domain("fog", shift=4.0), "three", "two")
    assert counts(third) == {"night": 12, "fog": 12}
    assert sum(len(list((third / name / "images").iterdir())) for name in ("night", "fog")) == 24


def test_a_domain_of_one_frame_stops_nothing(domain, replay):
    replay(domain("day", 1), "one", capacity=100)
    second = replay(domain("night", 1, shift=2.0), "two", "one", capacity=100)
    assert counts(replay(domain("fog", shift=4.0), "three", "two", capacity=21, share=1.0)) == {"fog": 20}
    assert json.loads((second / "buffer.json").read_text())["distances"] == {"day": 0.0}


def test_the_most_unlike_domain_is_replayed(domain, replay):
    replay(domain("day"), "one", capacity=60, share=0.2)
    replay(domain("night", shift=3.0, seed=1), "two", "one", capacity=60, share=0.2)
    third = replay(domain("dusk", shift=2.5, seed=2), "three", "two", capacity=60, share=0.2, select=1)
    told = json.loads((third / "buffer.json").read_text())
    assert told["replayed"] == ["day"]
    assert told["distances"]["day"] > told["distances"]["night"]
    assert {image["file_name"].split("/")[0] for image in read_json(third / "past.json")["images"]} == {"day"}


def test_what_falls_out_of_the_buffer_is_not_chosen(domain, replay):
    replay(domain("day"), "one")
    replay(domain("night", shift=1.0, seed=1), "two", "one")
    third = replay(domain("fog", shift=4.0, seed=2), "three", "two", select=1)
    assert counts(third) == {"night": 12, "fog": 12}
    assert read_json(third / "buffer.json")["replayed"] == ["night"]
    assert {image["file_name"].split("/")[0] for image in read_json(third / "past.json")["images"]} == {"night"}


def test_features_stay_with_their_frames(domain, replay):
    first = replay(domain("day"), "one", hold_out=0.5)
    second = replay(domain("night", shift=2.0), "two", "one", capacity=20)
    signals = read_signals(second / "day")
    frames = [
        image["frame"] for part in ("train", "held") for image in read_json(second / f"day/{part}.json")["images"]
    ]
    assert signals.indices == frames
    assert len(frames) < len(read_signals(first / "day"))


def read_json(path):
    return json.loads(path.read_text())


def test_files_are_read_by_what_trains_and_judges(domain, replay):
    replay(domain("day"), "one")
    second = replay(domain("night", shift=2.0), "two", "one")
    for name in ("new/labels.json", "past.json", "day/train.json", "day/held.json", "night/held.json"):
        assert len(read_coco(second / name)) > 0, name


def test_what_is_judged_on_is_never_trained_on(domain, replay):
    first = replay(domain("day"), "one", share=1.0)
    trained = {image["frame"] for image in read_json(first / "new/labels.json")["images"]}
    assert trained == set(range(16))
    assert {image["frame"] for image in read_json(first / "day/held.json")["images"]} == {16, 17, 18, 19}


def test_held_frames_are_the_last_of_each_recording():
    images = [
        {"id": i, "file_name": f"{r}/{i}.jpg", "recording": r}
        for r in "ab"
        for i in range(4 * (r == "b"), 4 + 4 * (r == "b"))
    ]
    assert held_out(images, 0.25) == {3, 7}
    assert held_out(images[:1], 0.5) == set()


def test_a_domain_that_comes_back_stands_beside_the_older_one(domain, replay, tmp_path):
    given = domain("night")
    replay(given, "one")
    assert counts(replay(given, "two", "one")) == {"night": 12, "night.2": 12}


def test_the_draw_is_a_function_of_the_seed(domain, replay):
    given = domain("day")
    drawn = [read_json(replay(given, f"o{n}", seed=s) / "day/train.json") for n, s in enumerate((1, 1, 2))]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("wrong", ["--share=2", "--capacity=0", "--name=new"])
def test_settings_are_checked(domain, tmp_path, capsys, wrong):
    assert main(["replay", *domain("day"), f"--output={tmp_path / 'o'}", wrong]) == 1
    assert wrong.split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc"])
def test_a_label_file_that_names_files_elsewhere_is_refused(domain, tmp_path, capsys, folder):
    given = domain("day")
    path, names = tmp_path / "labels-day" / "labels.json", [f"{folder}/{number}.jpg" for number in range(20)]
    document = json.loads(path.read_text())
    document["images"] = [image | {"file_name": name} for image, name in zip(document["images"], names, strict=True)]
    path.write_text(json.dumps(document))
    write_signals(tmp_path / "features-day", replace(read_signals(tmp_path / "features-day"), names=names), None)
    assert main(["replay", *given, f"--output={tmp_path / 'b'}", "--capacity=24"]) == 1
    assert "not a name inside a folder" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["../out", "/tmp/out"])
def test_a_buffer_that_names_a_domain_elsewhere_is_refused(domain, replay, tmp_path, capsys, name):
    buffer = replay(domain("day"), "one")
    index = next(path for path in buffer.glob("*.json") if "domains" in path.read_text())
    index.write_text(index.read_text().replace('"name": "day"', f'"name": "{name}"'))
    given = [*domain("night", shift=2.0), f"--output={tmp_path / 'two'}", f"--buffer={buffer}"]
    assert main(["replay", *given]) == 1
    assert "not a name inside a folder" in capsys.readouterr().err
