"""Video files on a server, which are streams with an end."""

import http.server
import threading
from functools import partial

import pytest
from clips import encode

from cahqp.edge.capture import read_frames
from cahqp.errors import DataError


@pytest.fixture
def server(tmp_path):
    class Files(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_finite_file_on_a_server_ends_after_its_last_frame(server, tmp_path):
    encode(tmp_path / "a.mp4", "libx264", range(0, 2000, 100))
    frames = list(read_frames(f"{server}/a.mp4", patience=0.01))
    assert len(frames) == 20
    assert frames[-1].timestamp - frames[0].timestamp == pytest.approx(1.9, abs=0.01)


def test_a_file_that_breaks_off_is_not_begun_again(server, tmp_path):
    path = encode(tmp_path / "a.mp4", "libx264", range(0, 2000, 100), faststart=True)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"broke off after \d+ of 20 frames"):
        list(read_frames(f"{server}/a.mp4", patience=0.01))
