import pytest

from cahqp.data.splits import check_leakage, split_by_recording, split_later_block
from cahqp.errors import DataError
from cahqp.frame import Frame


def frames(recording, indices, camera=""):
    return [Frame(i, f"{recording}/{i}", (8, 8), camera, recording, i) for i in indices]


def located(*parts):
    return [(frame, None) for part in parts for frame in part]


def test_no_recording_is_on_both_sides():
    everything = [frame for name in "abcde" for frame in frames(name, range(4))]
    train, held_out = split_by_recording(everything, 0.4, seed=1)
    assert len(train) == 12
    assert not {everything[i].recording for i in train} & {everything[i].recording for i in held_out}


def test_a_split_by_camera_keeps_its_recordings_together():
    everything = frames("a", range(2), "x") + frames("b", range(2), "x") + frames("c", range(2), "y")
    train, held_out = split_by_recording(everything, 0.5, by_camera=True)
    assert sorted(map(len, (train, held_out))) == [2, 4]


def test_one_recording_cannot_be_split_by_recording():
    with pytest.raises(DataError, match="hold out a later block"):
        split_by_recording(frames("a", range(9)), 0.5)


def test_a_later_block_comes_after_the_rest_of_its_recording():
    everything = frames("a", [3, 1, 0, 2]) + frames("b", range(2))
    train, held_out = split_later_block(everything, 0.5)
    assert [(everything[i].recording, everything[i].index) for i in held_out] == [("a", 3), ("a", 2), ("b", 1)]
    check_leakage(located([everything[i] for i in train]), located([everything[i] for i in held_out]), later_block=True)


def test_a_shared_recording_is_refused():
    with pytest.raises(DataError, match=r"a: trained on up to frame 4, .*\n.*later_block: true"):
        check_leakage(located(frames("a", range(5))), located(frames("a", range(5, 9))))


def test_a_shared_camera_is_refused_where_no_recording_is_named():
    with pytest.raises(DataError, match="x: trained on"):
        check_leakage(located(frames("", range(5), "x")), located(frames("", range(5, 9), "x")))


@pytest.mark.parametrize("first", [0, 3, 4])
def test_a_later_block_must_be_later(first):
    with pytest.raises(DataError, match="must come after"):
        check_leakage(located(frames("a", range(5))), located(frames("a", [first, 8])), later_block=True)


def test_frames_of_unknown_origin_only_warn(caplog):
    check_leakage(located(frames("", range(5))), located(frames("", range(5))))
    assert "name no recording and no camera" in caplog.text


@pytest.mark.parametrize(("content", "same"), [(b"pixels", True), (b"pixelS", False)])
def test_the_same_image_under_another_name_is_refused(tmp_path, content, same):
    (tmp_path / "a.png").write_bytes(b"pixels")
    (tmp_path / "b.png").write_bytes(content)
    sides = [[(frames(name, [0])[0], tmp_path / f"{name}.png")] for name in "ab"]
    if same:
        with pytest.raises(DataError, match=r"b\.png is .*a\.png"):
            check_leakage(*sides, later_block=True)
    else:
        check_leakage(*sides)
