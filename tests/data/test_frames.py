import json
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from cahqp.coco.decoding import BrokenImageError, read_brightness, read_image
from cahqp.data.frames import open_frames
from cahqp.data.images import Quarantine, write_quarantine
from cahqp.errors import DataError


@pytest.fixture
def video(tmp_path):
    """Write a video at 10 frames/s, frame i of grey 10 i, in which frames last `pattern` tenths of a second in turn."""

    def write(frames=20, pattern=(1,), name="street.mp4"):
        path = tmp_path / name
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
        for number in range(frames):
            writer.write(np.full((48, 64, 3), 10 * number % 250, np.uint8))
        writer.release()
        if len(pattern) > 1:
            path.write_bytes(varied(path.read_bytes(), [pattern[i % len(pattern)] for i in range(frames)]))
        return path

    return write


def varied(data, durations):
    """Give the frames of an MP4 file durations of their own: its box `stts` becomes a longer one."""
    at = data.rindex(b"stts") - 4
    size, unit = struct.unpack(">I", data[at : at + 4])[0], struct.unpack(">I", data[at + 20 : at + 24])[0]
    entries = b"".join(struct.pack(">II", 1, unit * duration) for duration in durations)
    box = struct.pack(">I4sII", 16 + len(entries), b"stts", 0, len(durations)) + entries
    changed = bytearray(data[:at] + box + data[at + size :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        start = changed.rindex(name) - 4
        length = struct.unpack(">I", changed[start : start + 4])[0] + len(box) - size
        changed[start : start + 4] = struct.pack(">I", length)
    edit = changed.rindex(b"elst") + 12
    changed[edit : edit + 4] = struct.pack(">I", 10**6)
    return bytes(changed)


def greys(source, positions):
    return [round(float(source.read(position).mean()) / 10) for position in positions]


def test_folders_are_searched_in_natural_order(tmp_path):
    for name in ("b/frame10.jpg", "b/frame9.PNG", "a/1.webp", "notes.txt", "b/._frame9.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = open_frames([tmp_path])
    assert [f.name for f in source.frames] == ["a/1.webp", "b/frame9.PNG", "b/frame10.jpg"]
    assert [(f.recording, f.index) for f in source.frames] == [("a", 0), ("b", 0), ("b", 1)]


def test_equal_names_of_two_folders_become_unique(tmp_path):
    for name in ("cam1/night/0.png", "cam2/night/0.png", "cam2/night/sub/0.png", "day/5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    source = open_frames([tmp_path / "cam1" / "night", tmp_path / "cam2" / "night", tmp_path / "day"])
    named = [(f.name, f.recording) for f in source.frames]
    nights = [("cam1/night/0.png", "cam1/night"), ("cam2/night/0.png", "cam2/night")]
    assert named == [*nights, ("cam2/night/sub/0.png", "cam2/sub"), ("5.png", "day")]
    assert [source.path(position).parent.name for position in range(4)] == ["night", "night", "sub", "day"]


def test_names_of_equally_named_videos_become_unique(video, tmp_path):
    for name in ("cam1", "cam2"):
        (tmp_path / name).mkdir()
    source = open_frames([video(2, name="cam1/clip.mp4"), video(2, name="cam2/clip.mp4")])
    assert [f.name for f in source.frames[::2]] == ["cam1/clip.mp4@0.000s", "cam2/clip.mp4@0.000s"]
    assert [f.recording for f in source.frames] == ["cam1/clip"] * 2 + ["cam2/clip"] * 2
    source = open_frames([video(2), video(2, name="street.mkv")])
    assert [f.recording for f in source.frames[::2]] == ["street.mp4/street", "street.mkv/street"]
    assert [f.name for f in source.frames[::2]] == ["street.mp4@0.000s", "street.mkv@0.000s"]


def test_files_of_one_folder_share_their_recordings(write_coco):
    path = write_coco(frames=2)
    other = path.with_name("other.json")
    other.write_text(path.read_text())
    assert {f.recording for f in open_frames([path, other]).frames} == {"north"}
    assert len(open_frames([])) == 0


def test_video_frames_are_identified_by_time_stamp(video):
    source = open_frames([video(pattern=(1, 2, 5))])
    assert [f.timestamp for f in source.frames[:6]] == [0.0, 0.1, 0.3, 0.8, 0.9, 1.1]
    assert [f.name for f in source.frames[:2]] == ["street.mp4@0.000s", "street.mp4@0.100s"]
    assert source.frames[0].recording == "street"
    assert greys(source, range(20)) == [*range(20)]


def test_frame_interval_takes_the_first_frame_of_each_interval(video):
    source = open_frames([video(pattern=(1, 2, 5))], frame_interval=0.5)
    assert [f.timestamp for f in source.frames[:5]] == [0.0, 0.8, 1.1, 1.6, 2.4]
    assert greys(source, range(5)) == [0, 3, 5, 6, 9]


def test_frame_interval_loses_nothing_to_rounding(video):
    assert len(open_frames([video(40, name="street.mkv")], frame_interval=0.1).frames) == 40


def test_video_frames_are_the_same_in_any_order(video):
    source = open_frames([video(24, pattern=(1, 9))])
    order = [23, 0, 12, 11, 11, 22, 5, 23]
    assert greys(source, order) == order


def test_an_open_video_can_be_sent_to_a_worker(video):
    source = open_frames([video()])
    source.read(7)
    assert greys(pickle.loads(pickle.dumps(source)), [3, 9]) == [3, 9]


def test_a_video_with_fewer_frames_than_its_header_gives_them_and_reports_the_difference(video, caplog):
    path = video(pattern=(9,) * 20)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"elst") + 12
    data[at : at + 4] = struct.pack(">I", 5000)  # the container states 18 s, its frames can be played for 5
    path.write_bytes(data)
    assert greys(open_frames([path]), range(6)) == [*range(6)]
    assert "street.mp4: 6 frames decode of 20 in the header" in caplog.text


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_a_file_that_is_not_a_video_is_refused(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.mp4 cannot be opened as a video"):
        open_frames([path])


def test_a_coco_file_gives_frames_and_no_labels(write_coco):
    source = open_frames([write_coco(change=lambda document: document.update(annotations="secret"))])
    assert source.frames[2].name == "north/002.png"
    assert source.read(2).shape == (24, 32, 3)
    assert "secret" not in json.dumps(source.__dict__, default=str)


def test_several_sources_are_one_with_unique_ids(write_coco, video):
    source = open_frames([write_coco(grey=100), video(3), write_coco("b", 2, grey=130).parent / "images"])
    assert [f.id for f in source.frames] == [*range(1, 10)]
    assert greys(source, [0, 4, 5, 7]) == [10, 0, 1, 13]
    assert source.path(4) is None
    assert source.path(8).name == "001.png"


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "does not exist"), ("a.txt", "is of no known kind. Allowed are"), ("empty", "contains no images")],
)
def test_sources_without_frames_are_refused(tmp_path, name, message):
    (tmp_path / "a.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{name} {message}"):
        open_frames([tmp_path / name])


def ramp(dtype=np.uint8):
    return np.arange(0, 240).reshape(12, 20).astype(dtype)


@pytest.mark.parametrize(
    ("mode", "off"), [("RGB", 0), ("L", 0), ("RGBA", 0), ("LA", 0), ("CMYK", 12), ("P", 60), ("1", 255)]
)
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, off):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(ramp()).convert("RGB").convert(mode).save(path, **({"quality": 100} if mode == "CMYK" else {}))
    image = read_image(path)
    assert (image.shape, image.dtype) == ((12, 20, 3), np.uint8)
    assert np.abs(image[..., 0].astype(int) - ramp()).max() <= off


def test_sixteen_bits_become_their_upper_eight(tmp_path):
    Image.fromarray(ramp(np.uint16) * 256 + 255).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png")[..., 0] == ramp()).all()


def test_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(ramp()).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (12, 20, 3)
    with pytest.raises(BrokenImageError, match="is 20x12 pixels, but its annotations are for 12x20; its EXIF"):
        read_image(tmp_path / "a.jpg", (20, 12))


def bomb(width, height):
    """Return the head of a PNG that claims a size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + struct.pack(">I", zlib.crc32(head)) + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"


@pytest.mark.parametrize("content", [b"", b"no image", bomb(60_000, 60_000), bomb(20, 12)])
def test_broken_images_are_reported(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BrokenImageError):
        read_image(tmp_path / "a.png")
    with pytest.raises(BrokenImageError):
        read_brightness(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow's own limit is a little lower
@pytest.mark.parametrize("read", [read_image, read_brightness])
def test_images_too_large_to_decode_are_reported(tmp_path, read):
    (tmp_path / "a.png").write_bytes(bomb(11_000, 11_000))
    with pytest.raises(BrokenImageError, match="11000x11000 pixels are more than the 100,000,000 allowed"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
def test_truncated_images_are_reported(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BrokenImageError, match="cannot be decoded"):
        read_image(path)


def test_brightness_is_that_of_the_whole_image(tmp_path):
    Image.fromarray(np.repeat(ramp(), 20, 0)).save(tmp_path / "a.jpg")
    assert read_brightness(tmp_path / "a.jpg") == pytest.approx(ramp().mean(), abs=3)


def broken_at(*positions):
    def read(position):
        if position in positions:
            raise BrokenImageError(f"no {position}")
        return np.full((1, 1, 3), position, np.uint8)

    return read


def quarantine(limit, *positions):
    return Quarantine([*"abcde"], limit, broken_at(*positions))


def test_the_next_healthy_frame_takes_the_place_of_a_broken_one():
    kept = quarantine(0.5, 0, 4)
    assert kept.healthy(4)[0] == 1
    assert [entry["file_name"] for entry in kept.entries()] == ["a", "e"]


def test_a_share_of_broken_frames_above_the_limit_stops_the_run():
    kept = quarantine(0.2, 0, 4)
    kept.healthy(0)
    kept.check()
    with pytest.raises(DataError, match=r"2 of 5 images are broken(.*\n)+  a: no 0\n  e: no 4\n.*max_invalid_share"):
        kept.healthy(4)


def test_a_set_without_healthy_frames_is_refused():
    kept = quarantine(1.0, *range(5))
    with pytest.raises(DataError, match="None of 5 images can be decoded"):
        kept.healthy(2)


def test_the_list_of_broken_frames_is_written_where_there_is_one(tmp_path):
    kept = quarantine(1.0, 1)
    write_quarantine(tmp_path / "quarantine.json", [kept])
    assert not (tmp_path / "quarantine.json").exists()
    kept.add(1)
    write_quarantine(tmp_path / "quarantine.json", [kept])
    assert json.loads((tmp_path / "quarantine.json").read_text()) == {"images": [{"file_name": "b", "reason": "no 1"}]}
