import hashlib
import json

import pytest

from cahqp.cycle.init.download import download
from cahqp.errors import WeightsError

DATA = bytes(range(256)) * 40


@pytest.fixture
def url(served):
    (served.folder / "a.pth").write_bytes(DATA)
    return f"{served.url}/a.pth"


def test_a_file_is_fetched_once_and_its_hash_recorded(served, url, tmp_path):
    path = download(url, tmp_path / "weights")
    assert download(url, tmp_path / "weights").read_bytes() == DATA
    assert len(served.ranges) == 1
    pin = json.loads((tmp_path / "weights/checkpoints.json").read_text())["a.pth"]
    assert pin == {"url": url, "sha256": hashlib.sha256(DATA).hexdigest(), "trusted": "first download"}
    assert [file.name for file in sorted(path.parent.iterdir())] == ["a.pth", "checkpoints.json"]


def test_an_interrupted_download_resumes(served, url, tmp_path):
    served.cut = 1000
    with pytest.raises(WeightsError, match="Rerun the same command to resume"):
        download(url, tmp_path)
    served.cut = None
    assert download(url, tmp_path).read_bytes() == DATA
    assert served.ranges == [0, 1000]


def test_a_file_that_changed_in_between_is_fetched_whole(served, url, tmp_path):
    served.cut = 1000
    with pytest.raises(WeightsError):
        download(url, tmp_path)
    served.cut = None
    (served.folder / "a.pth").write_bytes(b"new" * 2000)
    assert download(url, tmp_path).read_bytes() == b"new" * 2000


def test_a_published_hash_is_checked(url, tmp_path):
    with pytest.raises(WeightsError, match="not 00ff, which was published"):
        download(url, tmp_path, "00ff")
    assert download(url, tmp_path, hashlib.sha256(DATA).hexdigest()).is_file()


def test_a_file_that_changed_after_the_first_download_is_refused(url, tmp_path):
    download(url, tmp_path).write_bytes(b"other")
    with pytest.raises(WeightsError, match="recorded at the first download"):
        download(url, tmp_path)


def test_a_server_that_does_not_answer(tmp_path):
    with pytest.raises(WeightsError, match="give the file instead of the name"):
        download("http://127.0.0.1:9/a.pth", tmp_path)
