import pytest

from cahqp.data.splits import check_leakage
from cahqp.errors import DataError
from cahqp.frame import Frame


def frames(recording, indices, camera=""):
    return [Frame(i, f"{recording}/{i}", (8, 8), camera, recording, i) for i in indices]


def located(*parts):
    return [(frame, None) for part in parts for frame in part]


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
