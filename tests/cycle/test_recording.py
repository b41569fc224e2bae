"""Streams that tests serve: a camera over HTTP or TCP that breaks off and comes back."""

import http.server
import itertools
import json
import re
import socket
import threading
import time
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
from clips import encode

from cahqp.__main__ import main
from cahqp.coco.reader import read_coco_frames
from cahqp.cycle.fetch import recording
from cahqp.edge import streams
from cahqp.files import redact_url

SECRET = "s3cr%3Ft"


@pytest.fixture(autouse=True)
def impatient(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(streams, "_FIRST_WAIT", 0.02)
    monkeypatch.setattr(streams, "_LONGEST_WAIT", 0.05)


class Camera(http.server.BaseHTTPRequestHandler):
    """An MJPEG camera that hangs up after some frames; a bright square moves on every third one."""

    per_call, calls, pause = 6, 100, 0.01

    def do_GET(self):
        type(self).calls -= 1
        if self.calls < 0:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for number in range(self.per_call):
            image = np.full((48, 64, 3), 90, np.uint8)
            image[10:30, 20 * (number // 3) : 20 * (number // 3) + 18] = 220
            data = cv2.imencode(".jpg", image)[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + data + b"\r\n")
            except OSError:
                return
            time.sleep(self.pause)

    def log_message(self, *_):
        pass


@pytest.fixture
def camera():
    """Return the address of a camera with the given attributes."""
    servers = []

    def start(**attributes):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Camera,), attributes))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://admin:{SECRET}@127.0.0.1:{server.server_port}/live?token=t0ken"

    yield start
    for server in servers:
        server.shutdown()


def images(folder):
    return json.loads(Path(folder, "frames.json").read_text())["images"]


def test_a_camera_that_breaks_off_is_recorded_without_its_password(camera, capsys):
    assert main(["fetch", camera(), "one", "--until", "60s", "--limit", "14", "--verbose"]) == 0
    report = "".join(capsys.readouterr())
    assert "broke off after" in report and "14 frames of 127.0.0.1" in report and "lost connections" in report
    frames = images("one")
    times = [image["timestamp"] for image in frames]
    assert len(times) == 14 and all(0 < b - a < 1 for a, b in itertools.pairwise(times))
    assert abs(times[0] - time.time()) < 30
    assert len({image["recording"] for image in frames}) >= 2
    assert len(read_coco_frames(Path("one/frames.json"))) == 14
    written = report + "".join(str(path) + path.read_text(errors="replace") for path in Path().rglob("*.[jy]*"))
    assert not any(word in written for word in (SECRET, "s3cr?t", "t0ken", "admin"))


def test_only_changed_frames_are_kept_and_the_others_counted(camera, capsys):
    assert main(["fetch", camera(per_call=300), "one", "--when", "changed", "--limit", "2", "--until", "20s"]) == 0
    assert "without a change" in capsys.readouterr().out
    assert len(images("one")) == 2


def test_frames_are_taken_at_intervals(camera, capsys):
    address = camera(per_call=500, pause=0.02)
    assert main(["fetch", address, "one", "--until", "2s", "--frame-interval", "0.25"]) == 0
    times = [image["timestamp"] for image in images("one")]
    assert 2 <= len(times) <= 9
    assert len({int(moment / 0.25) for moment in times}) == len(times)
    assert "between the intervals" in capsys.readouterr().out


@pytest.mark.parametrize("bound", [["--limit", "3"], ["--max-megabytes", "0.003"]])
def test_a_full_folder_ends_the_recording_or_drops_its_oldest_frames(camera, capsys, bound):
    assert main(["fetch", camera(per_call=20), "one", "--until", "30s", *bound]) == 0
    assert re.search(r"the limit of (3 frames|0.003 MB) is reached", capsys.readouterr().out)
    assert main(["fetch", camera(per_call=20), "two", "--until", "3s", *bound, "--when-full", "remove-oldest"]) == 0
    assert "removed as the oldest" in capsys.readouterr().out
    kept = sorted(path.name for path in Path("two/images/127.0.0.1").iterdir())
    assert kept == [Path(image["file_name"]).name for image in images("two")]
    for folder in ("one", "two"):
        sizes = [path.stat().st_size for path in Path(folder).rglob("*.jpg")]
        assert sum(sizes) <= 3000 if "0.003" in bound else len(sizes) == 3


def test_a_camera_that_is_gone_keeps_its_frames_for_the_same_command(camera, capsys, monkeypatch):
    command = ["fetch", "", "one", "--until", "3s", "--patience", "0.1"]
    command[1] = camera(calls=1)
    assert main(command) == 1
    assert "6 frames are kept: rerun the same command" in capsys.readouterr().err
    clock = time.time
    monkeypatch.setattr(recording.time, "time", lambda: clock() + 10)
    assert main(command) == 0  # its time is over
    assert len(images("one")) == 6


def test_a_camera_that_was_never_there_leaves_nothing(capsys):
    assert main(["fetch", "rtsp://user:word@127.0.0.1:9/1", "one", "--patience", "0.01"]) == 1
    assert "rtsp://127.0.0.1:9/1 sent no frame" in capsys.readouterr().err
    assert not Path("one").exists()


def test_an_interrupted_recording_is_finished(camera, monkeypatch, capsys):
    kept = recording.Recording._write

    def write(self, *arguments):
        kept(self, *arguments)
        if len(self.images) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(recording.Recording, "_write", write)
    assert main(["fetch", camera(), "one", "--when", "always", "--until", "1h"]) == 0
    assert "it was interrupted" in capsys.readouterr().out
    assert len(images("one")) == 4


def test_a_transport_stream_over_tcp_keeps_its_own_times(capsys):
    times = [0, 40, 80, 200, 240, 600]
    data = encode(Path("clip.ts"), "libx264", times).read_bytes()
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        for _ in range(2):
            connection, _ = server.accept()
            connection.sendall(data)
            connection.close()
        server.close()

    threading.Thread(target=serve, daemon=True).start()
    address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    assert main(["fetch", address, "one", "--limit", "12", "--until", "20s", "--camera", "gate"]) == 0
    found = [image["timestamp"] for image in images("one")]
    for part in (found[:6], found[6:]):
        assert [moment - part[0] for moment in part] == pytest.approx([moment / 1000 for moment in times], abs=0.002)
    assert {image["camera"] for image in images("one")} == {"gate"}


def test_a_webcam_is_recorded_and_opened_again(monkeypatch, capsys):
    class Webcam:
        opened: ClassVar = []

        def __init__(self, device):
            self.opened.append(device)
            self.left = 3

        def isOpened(self):
            return True

        def read(self):
            self.left -= 1
            return self.left >= 0, np.full((8, 12, 3), 9, np.uint8)

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Webcam)
    assert main(["fetch", "0", "one", "--limit", "5"]) == 0
    assert Webcam.opened[:2] == [0, 0]
    assert {image["camera"] for image in images("one")} == {"webcam-0"}
    assert main(["fetch", "/dev/video2", "two", "--limit", "5"]) == 0
    assert images("two")[0]["camera"] == "video2"


def test_trees_of_clips_are_read_to_any_depth():
    for name in ("north/2026-01-05/13/00.10", "north/2026-01-05/14/07.30", "south/2026-01-05/13/59.50"):
        Path("clips", name).parent.mkdir(parents=True, exist_ok=True)
        encode(Path("clips", f"{name}.mp4"), "mpeg4", [0, 100])
    assert main(["fetch", "clips", "one"]) == 0
    assert [image["camera"] for image in images("one")] == ["north"] * 4 + ["south"] * 2
    assert images("one")[2]["recording"] == "north/2026-01-05/14/07.30"


def test_files_beyond_the_limit_are_counted(capsys):
    for name in ("a", "b", "c"):
        Path("in").mkdir(exist_ok=True)
        cv2.imwrite(f"in/{name}.jpg", np.zeros((8, 8, 3), np.uint8))
    assert main(["fetch", "in", "one", "--limit", "2"]) == 0
    assert "1 of 3 files are left for later (--limit 2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["rtsp://a/1", "--until", "soon"], "such as 90s, 30m, 2h or 1d, got 'soon'"),
        (["in", "--until", "2h"], "--until LENGTH is for streams"),
        (["in", "--when", "changed"], "--when is for streams"),
        (["rtsp://a/1", "--after", "b"], "--after is for folders"),
        (["rtsp://a/1", "--max-megabytes", "0"], "--max-megabytes must be a number of megabytes above 0"),
    ],
)
def test_options_of_another_source_are_refused(given, message, capsys):
    assert main(["fetch", given[0], "one", *given[1:]]) != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://a:b@host:554/1?x=2", "rtsp://host:554/1"),
        ("rtsp://a:p@ss@host/1", "rtsp://host/1"),
        ("rtsp://a:p/s?s@host/1", "rtsp://host/1"),
        ("rtsp://host:554/mail@home/1", "rtsp://host:554/mail@home/1"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("rtsp://host/user=admin_password=x_channel=1", "rtsp://host/user=***"),
        ("rtsp://host/user=admin&password=x&channel=1", "rtsp://host/user=***&password=***&channel=1"),
        ("folder/a?b", "folder/a?b"),
    ],
)
def test_secrets_of_addresses_are_removed(url, shown):
    assert redact_url(url) == shown
