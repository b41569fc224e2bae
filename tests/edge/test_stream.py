"""What is left of `cahqp detect` on a stream that ends."""

import errno
import os
from pathlib import Path

import pytest

from cahqp.__main__ import main
from cahqp.edge import detect as detection
from cahqp.edge import streams
from cahqp.edge.capture import EdgeFrame


@pytest.fixture
def camera(edge, tmp_path, monkeypatch):
    """The command on a camera that sends so many frames and then does something else."""
    import numpy as np

    def detect(count, after):
        def frames(source, patience, naming):
            for number in range(1, count + 1):
                yield EdgeFrame(number, f"{number}", np.zeros((80, 140, 3), np.uint8), float(number))
            after()

        monkeypatch.setattr(detection, "read_frames", frames)
        given = [f"--weights={edge / 'student-package'}", "--frames=rtsp://camera/1", f"--output={tmp_path / 'd'}"]
        return main(["detect", *given])

    return detect


def interrupted():
    raise KeyboardInterrupt


def nothing():
    pass


def test_a_stream_that_is_down_leaves_no_output_behind(edge, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(streams, "_FIRST_WAIT", 0.01)
    given = [f"--weights={edge / 'student-package'}", "--frames=http://127.0.0.1:9/", f"--output={tmp_path / 'd'}"]
    for _ in range(2):
        assert main(["detect", *given, "--patience=0.01", "--draw"]) == 1
        assert "sent no frame" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_what_a_stream_has_sent_is_kept(camera, tmp_path, capsys):
    assert camera(3, interrupted) == 130
    told = capsys.readouterr().err
    assert "resume" not in told
    assert f"{tmp_path / 'd'} keeps" in told and "another --output" in told
    assert len((tmp_path / "d" / "detections.jsonl").read_text().splitlines()) == 3
    assert camera(3, nothing) == 1  # never overwritten
    assert "Choose another --output" in capsys.readouterr().err


def test_an_interrupted_stream_without_a_frame_leaves_the_output_free(camera, tmp_path, capsys):
    assert camera(0, interrupted) == 130
    assert "resume" not in capsys.readouterr().err
    assert camera(2, nothing) == 0


def test_frames_in_files_go_on_with_the_same_command(edge, tmp_path, capsys, monkeypatch):
    given = [f"--weights={edge / 'student-package'}", f"--frames={edge / 'frames'}", f"--output={tmp_path / 'd'}"]
    with monkeypatch.context() as patched:
        patched.setattr(detection, "_process", lambda *_: interrupted())
        assert main(["detect", *given]) == 130
    assert "Rerun the same command to resume" in capsys.readouterr().err
    assert main(["detect", *given]) == 0


@pytest.mark.parametrize("frames", ["rtsp://camera/1", "files"])
def test_a_disk_that_fills_up_is_told(edge, camera, tmp_path, capsys, monkeypatch, frames):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(detection, "format_line", full)
        given = [f"--weights={edge / 'student-package'}", f"--frames={edge / 'frames'}", f"--output={tmp_path / 'd'}"]
        assert (main(["detect", *given]) if frames == "files" else camera(2, nothing)) == 1
    told = capsys.readouterr().err
    assert "disk is full" in told and "detections.jsonl" in told
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_may_only_be_read_is_told(camera, tmp_path, capsys, monkeypatch):
    def barred(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", barred)
    assert camera(2, nothing) == 1
    assert f"{tmp_path / 'd'} cannot be written (Read-only file system)" in capsys.readouterr().err
