import http.server
import json
import shutil
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import torch

from cahqp.__main__ import main
from cahqp.data.transforms import plain
from cahqp.detectors.base import Output
from cahqp.detectors.model_file import load as load_detector
from cahqp.edge import streams
from cahqp.edge.capture import read_frames
from cahqp.edge.detections import decode
from cahqp.edge.package import MODEL, read_package
from cahqp.edge.prefetch import Prefetch
from cahqp.edge.runtime import Runtime
from cahqp.errors import DataError, WeightsError
from cahqp.predictor import Predictor
from cahqp.structures import Targets

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from cahqp.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def runtime(edge):
    return Runtime(read_package(edge / "student-package"))


@pytest.mark.parametrize("size", [(64, 96), (80, 140), (30, 50), (200, 70), (65, 97)])
def test_frames_are_prepared_as_in_training(edge, runtime, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    predictor = Predictor(load_detector(edge / "student.safetensors"))
    rule = predictor.detector.preprocessing
    view = torch.from_numpy(plain(rule)(image, Targets.empty(), 0)[0]).permute(2, 0, 1)
    assert (rule.normalise(view[None])[0].numpy() == runtime.preprocess(image)).all()
    expected, found = predictor.detect([image])[0], runtime.detect([image])[0]
    np.testing.assert_allclose(np.sort(found.scores), np.sort(expected.scores), atol=1e-5)
    assert (runtime.preprocess(image[:, :, ::-1], bgr=True) == runtime.preprocess(image)).all()


def test_decoding_is_that_of_the_detector(edge):
    detector = load_detector(edge / "student.safetensors")
    torch.manual_seed(3)
    logits, boxes = torch.randn(1, 12, 3), torch.rand(1, 12, 4)
    output = Output(logits, boxes, *[torch.zeros(0)] * 5, features=None)
    expected = detector.decode(output, torch.tensor([[80, 140]]))[0]
    found = decode(logits[0].numpy(), boxes[0].numpy(), (80, 140), 12)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-4)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    assert found.labels.tolist() == expected.labels.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_suppression_is_that_of_the_detector(edge, seed):
    detector = load_detector(edge / "student.safetensors")
    detector.nms_iou = 0.6
    random = torch.Generator().manual_seed(seed)
    logits, boxes = torch.randn(1, 40, 3, generator=random), torch.rand(1, 40, 4, generator=random) * 0.5 + 0.2
    boxes[:, 20:] = boxes[:, :20] + torch.randn(1, 20, 4, generator=random) * 0.02
    output = Output(logits, boxes, *[torch.zeros(0)] * 5, features=None)
    expected = detector.decode(output, torch.tensor([[80, 140]]))[0]
    found = decode(logits[0].numpy(), boxes[0].numpy(), (80, 140), 12, 0.6)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-4)
    assert found.labels.tolist() == expected.labels.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_before_suppression_keep_what_they_keep_after_it(seed):
    rng = np.random.default_rng(seed)
    centres, sides = rng.uniform(0.3, 0.7, (60, 2)), rng.uniform(0.1, 0.5, (60, 2))
    logits, boxes = rng.normal(0, 2, (60, 3)).astype(np.float32), np.hstack([centres, sides]).astype(np.float32)
    limits = np.array([0.3, 0.5, 0.7], np.float32)
    found = decode(logits, boxes, (80, 140), 100, 0.4, limits)
    wanted = decode(logits, boxes, (80, 140), 100, 0.4).filter_by_score(limits)
    assert 0 < len(found.scores) < 100
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_that_fails_at_work_ends_the_command(edge, tmp_path, capsys, monkeypatch):
    def fails(self, prepared):
        raise WeightsError("the model fails at work")

    monkeypatch.setattr(Runtime, "infer_frames", fails)
    given = ["detect", f"--weights={edge / 'student-package'}", f"--output={tmp_path / 'd'}"]
    assert main([*given, f"--frames={edge / 'frames'}"]) == 1
    assert "fails at work" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_detects_without_torch(edge, tmp_path):
    given = [f"--weights={edge / 'student-package'}", f"--frames={edge / 'frames'}", f"--output={tmp_path / 'd'}"]
    command = [sys.executable, "-c", WITHOUT_TORCH, "detect", *given, "--draw", "--threshold=0.3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "frames/s" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "d" / "detections.jsonl").read_text().splitlines()]
    assert [line["image"]["file_name"] for line in lines] == [f"{number}.png" for number in range(6)]
    assert all(d["score"] >= 0.3 for line in lines for d in line["detections"])
    assert sum(len(line["detections"]) for line in lines) > 5
    assert len(list((tmp_path / "d" / "drawn").iterdir())) == 6


def test_a_changed_package_does_not_run(edge, tmp_path):
    shutil.copytree(edge / "student-package", tmp_path / "p")
    data = bytearray((tmp_path / "p" / MODEL).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "p" / MODEL).write_bytes(bytes(data))
    with pytest.raises(WeightsError, match="was changed"):
        read_package(tmp_path / "p")


def test_a_broken_frame_is_told_and_the_rest_goes_on(edge, tmp_path, capsys):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0.png").write_bytes(b"no picture")
    (tmp_path / "frames" / "1.png").write_bytes((edge / "frames" / "1.png").read_bytes())
    given = [f"--weights={edge / 'student-package'}", f"--frames={tmp_path / 'frames'}", f"--output={tmp_path / 'd'}"]
    assert main(["detect", *given]) == 0
    assert "1 frames could not be decoded" in capsys.readouterr().out
    first = json.loads((tmp_path / "d" / "detections.jsonl").read_text().splitlines()[0])
    assert first["error"] == "cannot be decoded"
    (tmp_path / "frames" / "1.png").unlink()
    assert main(["detect", *given[:2], f"--output={tmp_path / 'e'}"]) == 1


def test_a_video_keeps_its_time_stamps(tmp_path):
    path = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for level in (0, 90, 180):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    found = list(read_frames(str(path)))
    assert [frame.timestamp for frame in found] == pytest.approx([0.0, 0.1, 0.2])
    assert found[1].name == "v.avi@0.100s"


class Camera(http.server.BaseHTTPRequestHandler):
    """An MJPEG camera that hangs up after three frames, and for good after two calls."""

    calls = 0

    def do_GET(self):
        type(self).calls += 1
        if self.calls > 2:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        data = cv2.imencode(".jpg", np.full((48, 64, 3), 99, np.uint8))[1].tobytes()
        for _ in range(3):
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            self.wfile.write(head.encode() + data + b"\r\n")

    def log_message(self, *_):
        pass


def test_a_broken_stream_is_opened_anew_and_given_up_at_last(monkeypatch):
    monkeypatch.setattr(streams, "_LONGEST_WAIT", 0.05)
    monkeypatch.setattr(streams, "_FIRST_WAIT", 0.05)
    monkeypatch.setattr(Camera, "calls", 0)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told, found = [], []
    with pytest.raises(DataError, match="sent no frame"):
        for frame in read_frames(f"http://127.0.0.1:{server.server_port}/", patience=0.5, report=told.append):
            found.append(frame)
    server.shutdown()
    assert len(found) >= 4  # of both calls
    assert "broke off after" in told[0]
    assert [frame.id for frame in found] == list(range(1, len(found) + 1))


def test_a_slow_reader_of_a_live_stream_sees_the_newest_frames():
    ready = threading.Event()

    def camera():
        yield from range(100)
        ready.set()

    items = Prefetch(camera(), size=4, live=True)
    with items as taken:
        assert ready.wait(10)
        assert list(taken) == [96, 97, 98, 99]
    assert items.dropped == 96


def test_what_goes_wrong_while_decoding_is_raised():
    def broken():
        yield 1
        raise DataError("cut")

    with pytest.raises(DataError, match="cut"), Prefetch(broken()) as taken:
        list(taken)


def test_a_silent_camera_does_not_hold_up_the_end():
    silent = threading.Event()

    def camera():
        silent.wait(30)
        yield 1

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Prefetch(camera()) as frames, Prefetch(frames):
        raise KeyboardInterrupt
    assert time.monotonic() - began < 10
    silent.set()


def test_frames_that_are_nowhere_are_named(edge, tmp_path, capsys):
    given = ["detect", f"--weights={edge / 'student-package'}", f"--output={tmp_path / 'd'}"]
    assert main([*given, f"--frames={tmp_path / 'nothing'}"]) == 1
    assert "nothing does not exist" in capsys.readouterr().err
    assert main([*given, "--frames=nothing", f"--weights={tmp_path}"]) == 1
    assert "neither a package" in capsys.readouterr().err
