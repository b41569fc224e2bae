"""Detection and loading in a process that the kernel keeps from the network and from other files."""

import socket
import sys
from functools import partial
from pathlib import Path

import pytest

from cahqp.__main__ import main
from cahqp.detectors.model_file import load
from cahqp.edge.isolation import isolate
from cahqp.errors import ConfigError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="isolation uses Landlock and seccomp of Linux")


def refused(action):
    """Check that the kernel refuses an action."""
    try:
        action()
    except PermissionError:
        return
    message = "the kernel allowed it"
    raise AssertionError(message)


def test_detections_in_isolation_are_the_same(edge, tmp_path, apart):
    given = ["detect", f"--weights={edge / 'student-package'}", f"--frames={edge / 'frames'}"]
    assert main([*given, f"--output={tmp_path / 'plain'}"]) == 0

    def work():
        code = main([*given, f"--output={tmp_path / 'isolated'}", "--isolated"])
        refused((edge / "student.safetensors").read_bytes)
        refused(partial((edge / "frames" / "new.png").write_bytes, b""))
        refused(socket.socket)
        return code

    assert apart(work) == 0
    assert (tmp_path / "isolated" / "detections.jsonl").read_text() == (
        tmp_path / "plain" / "detections.jsonl"
    ).read_text()


def test_a_model_file_loads_with_read_access_to_itself_alone(edge, tmp_path, apart):
    (tmp_path / "secret").write_text("secret")

    def work():
        isolate([edge / "student.safetensors"])
        load(edge / "student.safetensors")
        refused((tmp_path / "secret").read_text)
        refused((edge / "teacher.safetensors").read_bytes)
        refused(partial((tmp_path / "new").write_text, ""))
        refused(partial(Path.mkdir, tmp_path / "folder"))
        refused(partial(Path.unlink, tmp_path / "secret"))
        refused(partial(socket.create_connection, ("127.0.0.1", 9)))

    assert apart(work) == 0


def test_a_package_whose_frames_lead_elsewhere_reads_nothing(edge, tmp_path, apart, capfd):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "a.png").symlink_to(edge / "frames" / "0.png")
    given = ["detect", f"--weights={edge / 'student-package'}", f"--frames={tmp_path / 'frames'}", "--isolated"]
    assert apart(lambda: main([*given, f"--output={tmp_path / 'out' / 'o'}"])) == 1
    assert "a.png: Permission denied" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sys.platform": "darwin"}, "needs Linux"),
        ({"cahqp.edge.isolation._call": lambda *_: -1}, "no Landlock"),
    ],
)
def test_a_system_without_isolation_is_named(monkeypatch, tmp_path, changed, message):
    for name, value in changed.items():
        monkeypatch.setattr(name, value)
    with pytest.raises(ConfigError, match=message):
        isolate([tmp_path])


def test_a_stream_cannot_be_read_in_isolation(edge, tmp_path, capsys):
    given = [f"--weights={edge / 'student-package'}", "--frames=rtsp://127.0.0.1/1", f"--output={tmp_path / 'o'}"]
    assert main(["detect", *given, "--isolated"]) == 1
    assert "stream" in capsys.readouterr().err
