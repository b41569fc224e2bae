import numpy as np
import pytest

from cahqp.errors import RunError
from cahqp.frame import Frame
from cahqp.labels.candidates import Candidates, clip_candidates, encode
from cahqp.labels.shards.shards import LabelShards, index_shards

NOTHING = Candidates(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))


def line(position):
    return encode(position, Frame(id=position + 1, name=f"{position}.jpg", size=(100, 200)), NOTHING)


def write(work, rank, positions):
    with LabelShards(work, rank) as shards:
        for position in positions:
            shards.append(line(position))


def test_nothing_is_done_at_first(tmp_path):
    assert LabelShards(tmp_path, 0).done().tolist() == []


def test_done_counts_all_ranks(tmp_path):
    write(tmp_path, 0, [0, 2])
    write(tmp_path, 1, [5])
    assert LabelShards(tmp_path, 7).done().nonzero()[0].tolist() == [0, 2, 5]


def test_done_takes_a_byte_for_a_frame(tmp_path):
    write(tmp_path, 0, [999])
    assert LabelShards(tmp_path, 0).done().nbytes == 1000


def test_a_line_is_in_the_file_before_any_sync(tmp_path):
    shards = LabelShards(tmp_path, 0, sync_frames=10**6, sync_seconds=1e6)
    shards.append(line(3))
    assert index_shards(tmp_path).positions.tolist() == [3]


@pytest.mark.parametrize("cut", [1, 30, 10**9])
def test_a_torn_last_line_is_cut_off(tmp_path, cut):
    write(tmp_path, 0, [0, 1])
    path = tmp_path / "rank-00000.jsonl"
    whole = path.read_bytes()
    torn = whole.splitlines(keepends=True)[0][:-1][:cut]
    path.write_bytes(whole + torn)
    assert index_shards(tmp_path).positions.tolist() == [0, 1]
    write(tmp_path, 0, [2])
    assert index_shards(tmp_path).positions.tolist() == [0, 1, 2]
    assert path.read_bytes().startswith(whole)


def test_another_ranks_torn_line_is_left_out(tmp_path):
    write(tmp_path, 1, [4])
    (tmp_path / "rank-00001.jsonl").open("ab").write(b'{"position": 5, "image"')
    assert LabelShards(tmp_path, 0).done().nonzero()[0].tolist() == [4]


def test_a_damaged_line_inside_is_named(tmp_path):
    write(tmp_path, 0, [0, 1])
    path = tmp_path / "rank-00000.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"position": 0', b"\0\0\0\0"))
    with pytest.raises(RunError, match=r"rank-00000\.jsonl, line 1 is damaged"):
        index_shards(tmp_path)


class FullDisk:
    """A file that takes half a line and then no more."""

    def __init__(self, file):
        self.file, self.room = file, 20

    def write(self, data):
        if self.room == 0:
            raise OSError(28, "No space left on device")
        taken, self.room = data[: self.room], 0
        return self.file.write(taken)

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_full_disk_leaves_whole_lines_and_says_so(tmp_path):
    shards = LabelShards(tmp_path, 0)
    shards.append(line(0))
    shards._file = FullDisk(shards._file)
    with pytest.raises(RunError, match="No space left"):
        shards.append(line(1))
    assert shards.path.read_bytes().count(b"\n") == 1
    assert shards.path.read_bytes().endswith(b"\n")


def test_not_a_number_never_reaches_the_file(tmp_path):
    bad = Candidates(np.zeros((1, 4)), np.array([np.nan]), np.zeros(1, np.int64))
    with LabelShards(tmp_path, 0) as shards, pytest.raises(RunError, match=r"4\.jpg"):
        shards.append(encode(4, Frame(5, "4.jpg", (100, 200)), clip_candidates(bad, (100, 200), 0.0, "4.jpg")))
    assert shards.path.read_bytes() == b""
