"""Targets of images, videos, folders of cameras, signals and replay buffers."""

import json
import os
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from fuzz.target import Target, attempt, command

from cahqp.coco.decoding import check_header, read_brightness, read_image
from cahqp.coco.image_folder import ImageFolder
from cahqp.coco.sources import image_names
from cahqp.cycle.replay_buffer import read_buffer
from cahqp.data.frames import open_frames
from cahqp.drift.result import first_drifted
from cahqp.drift.signals import read_signals, write_signals
from cahqp.edge.capture import read_frames
from cahqp.errors import CahqpError
from cahqp.files import path_inside
from cahqp.json_policy import parse_json

stream = runpy.run_path(str(Path(__file__).parents[1] / "drift" / "signal_streams.py"))["stream"]
SUFFIXES = (".png", ".jpg", ".bmp", ".webp")


def picture(size=(24, 32)):
    return np.random.default_rng(1).integers(0, 255, (*size, 3)).astype(np.uint8)


def make_images(folder):
    for suffix in SUFFIXES:
        cv2.imwrite(str(folder / f"a{suffix}"), picture())
    cv2.imwrite(str(folder / "grey.png"), picture()[:, :, 0].astype(np.uint16) * 257)


def read_images(folder, output, mutator):
    for path in sorted(folder.iterdir()):
        attempt(
            mutator,
            lambda path=path: read_image(path, (24, 32)), lambda path=path: read_image(path),
            lambda path=path: check_header(path, (24, 32)), lambda path=path: read_brightness(path),
        )  # fmt: skip


def make_video(folder):
    for name, code in (("a.avi", "MJPG"), ("b.mp4", "mp4v")):
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter_fourcc(*code), 10, (32, 24))
        for _ in range(5):
            writer.write(picture())
        writer.release()


def read_videos(folder, output, mutator):
    def frames(path):
        source = open_frames([path], frame_interval=0.2)
        for position in range(len(source)):
            source.read(position)

    for path in sorted(folder.iterdir()):
        attempt(mutator, lambda path=path: frames(path), lambda path=path: [f.image for f in read_frames(str(path))])


def make_cameras(folder):
    (folder / "north" / "day 1").mkdir(parents=True)
    cv2.imwrite(str(folder / "north" / "day 1" / "a.png"), picture())
    (folder / "before").mkdir()
    (folder / "before" / "taken.json").write_text(json.dumps({"files": {"north/day 1/old.png": 3}}))


def read_cameras(folder, output, mutator):
    shutil.copytree(folder, output / "cameras", symlinks=True)
    for _ in range(mutator.random.choice((0, 0, 1, 3))):
        _add_file(output / "cameras", mutator)
    fetch = ["fetch", f"--frames={output / 'cameras'}", "--after", folder / "before", f"--output={output / 'o'}"]
    attempt(mutator, lambda: command(*fetch), lambda: image_names(output / "cameras"))


def _add_file(root, mutator):
    """Add a file, link or pipe with an odd name to the cameras."""
    path = root / os.fsdecode(mutator.name())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = mutator.random.randrange(6)
        if kind == 0:
            os.mkfifo(path)
        elif kind == 1:
            path.symlink_to(path)
        elif kind == 2:
            path.symlink_to(root / "nowhere")
        else:
            data = (root / "north" / "day 1" / "a.png").read_bytes()
            path.write_bytes(mutator.bytes(data) if kind == 3 else data)
    except (OSError, ValueError):
        return  # the system itself refuses the name


def read_names(folder, output, mutator):
    try:
        document = parse_json((folder / "names.json").read_bytes())
    except ValueError as error:
        raise CahqpError(str(error)) from error
    names = document if isinstance(document, list) else [document]
    for name in (str(name) for name in names):
        path = path_inside(folder, name)
        assert path.resolve().is_relative_to(folder.resolve()) or path.is_symlink(), path


def make_names(folder):
    (folder / "names.json").write_text(json.dumps(["a/b.png", "frame 1.jpg", "ü.png"]))


def make_signals(folder):
    frames = 24
    signals = stream(frames)
    for name in signals.names:
        path = folder / "frames" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture((8, 8)))
    for name, shift in (("day", 0.0), ("night", 3.0)):
        (folder / name).mkdir()
        write_signals(folder / name, replace(stream(frames, shift=shift), names=signals.names), "../frames")
    command(
        "drift",
        "--frames",
        folder / "night",
        f"--reference=day={folder / 'day'}",
        *_DRIFT,
        f"--output={folder / 'drift'}",
    )


_DRIFT = ("--window=8", "--block=2", "--permutations=199", "--confirm=1")


def read_drift(folder, output, mutator):
    given = ["--frames", folder / "night", f"--reference=day={folder / 'day'}", *_DRIFT]
    attempt(
        mutator,
        lambda: read_signals(folder / "night"),
        lambda: first_drifted(folder / "drift"),
        lambda: command("drift", *given, f"--output={output / 'd'}"),
        lambda: command("sample", "--features", folder / "night", "--budget=3", f"--drift={folder / 'drift'}",
                        f"--output={output / 's'}", accept=(1,)),
        lambda: command("sample", "--features", folder / "night", "--budget=3", f"--output={output / 't'}"),
    )  # fmt: skip


def make_buffer(folder):
    for name, shift in (("day", 0.0), ("night", 3.0)):
        images, boxes = [], []
        signals = stream(6, shift=shift)
        for number, image in enumerate(signals.names, 1):
            path = folder / name / "images" / image
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture((8, 8)))
            entry = {"id": number, "file_name": image, "height": 8, "width": 8, "camera": "north", "frame": number}
            images.append(entry)
            boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.9})
        document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "car"}]}
        (folder / name / "labels.json").write_text(json.dumps(document))
        write_signals(folder / name, signals, None)
    command(*_replay(folder, "day"), f"--output={folder / 'buffer'}")


def _replay(folder, name):
    options = [f"--labels={folder / name / 'labels.json'}", f"--features={folder / name}", f"--name={name}"]
    return ["replay", *options, "--capacity=8", "--share=0.5"]


def read_replay(folder, output, mutator):
    attempt(
        mutator,
        lambda: read_buffer(folder / "buffer"), lambda: ImageFolder(folder / "buffer" / "past.json"),
        lambda: command(*_replay(folder, "night"), f"--buffer={folder / 'buffer'}", f"--output={output / 'b'}"),
    )  # fmt: skip


TARGETS = [
    Target("images", make_images, read_images),
    Target("videos", make_video, read_videos),
    Target("cameras", make_cameras, read_cameras),
    Target("names", make_names, read_names),
    Target("signals", make_signals, read_drift, fixed=("frames/",)),
    Target("replay-buffer", make_buffer, read_replay, fixed=("day/images", "night/images")),
]
