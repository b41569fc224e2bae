"""Video files on a server, which are streams with an end."""

import pytest

from cahqp.edge import capture
from cahqp.errors import DataError


class Served:
    """Capture of so many frames whose header counts `count`; counts how often it was opened."""

    opened = 0

    def __init__(self, frames, count):
        self.left, self.count = frames, count

    def __call__(self, *_):
        Served.opened += 1
        return self

    def read(self):
        self.left -= 1
        return self.left >= 0, None

    def get(self, _):
        return self.count

    def release(self):
        pass


@pytest.fixture
def served(monkeypatch):
    def read(frames, count):
        Served.opened = 0
        monkeypatch.setattr(capture.cv2, "VideoCapture", Served(frames, count))
        return list(capture.read_frames("http://host/a.mp4", patience=0.01))

    return read


def test_a_finite_file_on_a_server_ends_after_its_last_frame(served):
    assert len(served(20, 20.0)) == 20
    assert Served.opened == 1


def test_a_file_that_breaks_off_is_not_begun_again(served):
    with pytest.raises(DataError, match="broke off after 5 of 20 frames"):
        served(5, 20.0)
    assert Served.opened == 1
