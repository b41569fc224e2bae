import errno
import json
import os
import shutil
import time
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest
from clips import encode
from PIL import Image

from cahqp.__main__ import main
from cahqp.coco.reader import read_coco_frames
from cahqp.cycle.fetch.command import list_new
from cahqp.cycle.fetch.stores import RemoteFile, list_files
from cahqp.data.frames import open_frames
from cahqp.edge.capture import read_frames
from cahqp.errors import DataError


@pytest.fixture
def incoming(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for camera in ("north", "south"):
        for number in range(2):
            path = Path("incoming") / camera / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((8, 12, 3), 9, np.uint8))
    Path("incoming/north/.half.jpg").write_bytes(b"half")
    Path("incoming/north/notes.txt").write_text("no frame")
    return tmp_path


def images(folder):
    return json.loads(Path(folder, "frames.json").read_text())["images"]


def test_a_folder_is_taken_once(incoming):
    assert main(["fetch", "--frames=incoming", "--output=one"]) == 0
    assert len(images("one")) == 4
    assert {image["camera"] for image in images("one")} == {"north", "south"}
    assert len(read_coco_frames(Path("one/frames.json"))) == 4
    cv2.imwrite("incoming/south/9.jpg", np.full((8, 12, 3), 9, np.uint8))
    assert main(["fetch", "--frames=incoming", "--output=two", "--after", "one"]) == 0
    assert [image["file_name"] for image in images("two")] == ["south/9.jpg"]


def test_a_later_change_of_the_folder_does_not_reach_what_was_fetched(incoming):
    assert main(["fetch", "--frames=incoming", "--output=one"]) == 0
    before = Path("one/images/north/0.jpg").read_bytes()
    Path("incoming/north/0.jpg").write_bytes(b"other")
    assert Path("one/images/north/0.jpg").read_bytes() == before


def test_a_picture_that_says_how_to_turn_it_stays_as_it_is_stored(incoming):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save("incoming/north/turned.jpg", exif=exif)
    assert main(["fetch", "--frames=incoming", "--output=one"]) == 0
    (turned,) = [image for image in images("one") if "turned" in image["file_name"]]
    assert (turned["width"], turned["height"]) == (60, 40)


def test_a_store_that_cannot_be_reached_is_told_without_its_password(incoming, capsys):
    assert main(["fetch", "--frames=ftp://user:secret@127.0.0.1:1/x?token=hidden", "--output=one"]) == 1
    told = capsys.readouterr().err
    assert "ftp://127.0.0.1:1/x cannot be reached" in told
    written = "".join(path.read_text(errors="replace") for path in incoming.rglob("*.json"))
    assert not any(word in text for word in ("secret", "hidden") for text in (told, written))


@pytest.fixture
def refusing_store():
    """The address of a server that answers every request with the status in its path."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(int(self.path.split("/")[1]))

        do_HEAD = do_PUT = do_POST = do_GET

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:s3cret@127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_store_that_refuses_is_reported_without_secrets(incoming, refusing_store, status, capsys):
    assert main(["fetch", f"--frames={refusing_store}/{status}/x?token=h%21dden&b=2", "--output=one"]) == 1
    report = "".join(capsys.readouterr())
    assert str(status) in report and "127.0.0.1" in report
    assert not any(word in report for word in ("s3cret", "h%21dden", "h!dden", "token"))


def test_nothing_new_and_nowhere_are_told(incoming, capsys):
    assert main(["fetch", "--frames=incoming", "--output=one"]) == 0
    assert main(["fetch", "--frames=incoming", "--output=two", "--after", "one"]) == 1
    assert "has no new image or video" in capsys.readouterr().err
    assert main(["fetch", "--frames=gone", "--output=three"]) == 1
    assert "gone is not a folder" in capsys.readouterr().err


def test_frames_are_in_the_order_of_their_numbers(incoming):
    for number in (2, 10, 11):
        cv2.imwrite(f"incoming/north/{number}.jpg", np.full((8, 12, 3), 9, np.uint8))
    assert main(["fetch", "--frames=incoming", "--output=one"]) == 0
    north = [image["file_name"] for image in images("one") if image["camera"] == "north"]
    assert north == [f"north/{number}.jpg" for number in (0, 1, 2, 10, 11)]


def test_the_same_command_works_once_something_has_arrived(incoming, capsys):
    Path("empty/north").mkdir(parents=True)
    assert main(["fetch", "--frames=empty", "--output=one"]) == 1
    cv2.imwrite("empty/north/0.jpg", np.full((8, 12, 3), 9, np.uint8))
    assert main(["fetch", "--frames=empty", "--output=one"]) == 0
    assert len(images("one")) == 1


def test_a_broken_video_stops_nothing(incoming, capsys):
    Path("incoming/south/film.avi").write_bytes(b"torn")
    assert main(["fetch", "--frames=incoming", "--output=one"]) == 0
    assert "Skipped: south/film.avi cannot be opened as a video" in capsys.readouterr().out
    assert len(images("one")) == 4


def spoil(kind):
    """Put an odd file beside the others."""
    folder = Path("incoming/north")
    if kind == "loop":
        (folder / "loop.jpg").symlink_to("loop.jpg")
    elif kind == "long":
        (folder / ("x" * 251 + ".jpg")).write_bytes(b"x")
    elif kind == "latin-1":
        (Path(os.fsdecode(b"incoming/north/caf\xe9.jpg"))).write_bytes(b"x")
    elif kind == "backslash":
        (folder / "a\\b.jpg").write_bytes(b"x")
    else:  # a PNG header of 100,000 x 100,000 pixels
        size = (100_000).to_bytes(4, "big") * 2
        chunk = b"IHDR" + size + b"\x08\x02\x00\x00\x00"
        crc = zlib.crc32(chunk).to_bytes(4, "big")
        (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + chunk + crc)


def test_names_that_are_left_out_count_as_lost_and_are_reported_once(incoming, capsys):
    spoil("backslash")
    spoil("latin-1")
    assert main(["fetch", "--frames=incoming", "--output=one"]) == 0
    metrics = json.loads(Path("one/manifest.json").read_text())["metrics"]
    assert metrics == {"files": 6, "frames": 4, "lost": 2}
    report = capsys.readouterr().out
    assert report.count("Skipped") == 2 and "4 frames of 4 files" in report
    cv2.imwrite("incoming/south/9.jpg", np.full((8, 12, 3), 9, np.uint8))
    assert main(["fetch", "--frames=incoming", "--output=two", "--after", "one"]) == 0
    assert json.loads(Path("two/manifest.json").read_text())["metrics"]["lost"] == 0
    list_new("incoming", [], None)  # as each look of a watched folder
    assert "Skipped" not in capsys.readouterr().out


def test_an_object_with_the_name_of_a_folder_stops_nothing(incoming, monkeypatch, capsys):
    files = [RemoteFile("north/0.jpg", 1), RemoteFile("north/0.jpg/1.jpg", 1), RemoteFile("south/0.jpg", 1)]
    monkeypatch.setattr("cahqp.cycle.fetch.stores._list_remote", lambda _: iter(files))
    usable, unusable = list_files("s3://fleet/cams")
    assert [file.name for file in usable] == ["north/0.jpg/1.jpg", "south/0.jpg"]
    assert unusable == ["'north/0.jpg'"]


@pytest.mark.parametrize("place", ["fetch", "edge", "training"])
def test_a_frame_that_cannot_be_converted_is_a_message(incoming, monkeypatch, capsys, place):
    film("incoming/south/film.avi", (0, 100))

    class Unusable:
        pts, width, height, is_corrupt, key_frame = 0, 64, 48, False, True

        def to_ndarray(self, format):
            raise ValueError("too large")

    monkeypatch.setattr("cahqp.coco.video.Video.decode", lambda *_: iter([Unusable()]))
    if place == "fetch":
        assert main(["fetch", "--frames=incoming", "--output=one"]) == 0
        assert "Skipped: south/film.avi: the frame at 0.000 s cannot be decoded" in capsys.readouterr().out
    elif place == "edge":
        with pytest.raises(DataError, match="cannot be decoded"):
            list(read_frames("incoming/south/film.avi"))
    else:
        with pytest.raises(DataError, match="cannot be decoded"):
            open_frames([Path("incoming/south/film.avi")]).read(0)


@pytest.mark.parametrize("kind", ["loop", "long", "latin-1", "backslash", "huge"])
def test_an_odd_file_stops_nothing_and_is_counted_once(incoming, capsys, kind):
    spoil(kind)
    assert main(["fetch", "--frames=incoming", "--output=one"]) == 0
    healthy = [image for image in images("one") if image["height"] == 8]
    assert len(healthy) == 4
    assert kind == "huge" or "Skipped" in capsys.readouterr().out
    assert main(["fetch", "--frames=incoming", "--output=two", "--after", "one"]) == 1
    assert "no new image" in capsys.readouterr().err


def test_nothing_but_broken_videos_is_an_error_that_can_be_mended(incoming, capsys):
    Path("films/north").mkdir(parents=True)
    Path("films/north/film.avi").write_bytes(b"torn")
    assert main(["fetch", "--frames=films", "--output=one"]) == 1
    assert "None of the 1 files of films gave a frame" in capsys.readouterr().err
    Path("films/north/film.avi").unlink()
    cv2.imwrite("films/north/0.jpg", np.full((8, 12, 3), 9, np.uint8))
    assert main(["fetch", "--frames=films", "--output=one"]) == 0


def film(path, levels, rate=4):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), rate, (32, 16))
    for level in levels:
        writer.write(np.full((16, 32, 3), level, np.uint8))
    writer.release()


def brightness(folder):
    """The mean level of each fetched image by name, and that no name is listed twice."""
    names = [image["file_name"] for image in images(folder)]
    assert len(set(names)) == len(names)
    return {name: round(cv2.imread(f"{folder}/images/{name}").mean(), -1) for name in names}


def test_videos_become_images(incoming):
    film("incoming/north/film.avi", range(0, 240, 20))
    assert main(["fetch", "--frames=incoming", "--output=one", "--frame-interval=1"]) == 0
    frames = [image for image in images("one") if image["recording"] == "north/film"]
    assert [round(frame["timestamp"]) for frame in frames] == [0, 1, 2]
    assert {frame["camera"] for frame in frames} == {"north"}


def test_videos_that_differ_in_their_suffix_alone_keep_it(incoming):
    levels = {"north/a.avi": 0, "north/a.mkv": 100, "north/b.avi": 200}
    for name, level in levels.items():
        film(f"films/{name}", [level])
    assert main(["fetch", "--frames=films", "--output=one"]) == 0
    frame = "000000000.jpg"
    assert brightness("one") == {f"north/a.avi/{frame}": 0, f"north/a.mkv/{frame}": 100, f"north/b/{frame}": 200}
    recordings = [image["recording"] for image in images("one")]
    assert recordings == ["north/a.avi", "north/a.mkv", "north/b"]
    assert {image["camera"] for image in images("one")} == {"north"}


def test_a_picture_that_is_called_like_a_frame_of_a_video_keeps_its_pixels(incoming):
    film("films/north/a.avi", [0])
    film("films/north/a/000000000.jpg.avi", [100])
    cv2.imwrite("films/north/a/000000000.jpg", np.full((16, 32, 3), 200, np.uint8))
    assert main(["fetch", "--frames=films", "--output=one"]) == 0
    expected = {"000000000-2.jpg": 0, "000000000.jpg": 200, "000000000.jpg.avi/000000000.jpg": 100}
    assert brightness("one") == {f"north/a/{name}": level for name, level in expected.items()}


def test_two_frames_of_one_millisecond_are_two_images(incoming):
    film("films/north/a.mkv", [0, 100, 200], rate=10_000)
    assert main(["fetch", "--frames=films", "--output=one"]) == 0
    assert sorted(brightness("one").values()) == [0, 100, 200]


@pytest.fixture
def bucket(monkeypatch):
    """A file system of a local S3 server with the empty bucket `fleet`."""
    moto_server = pytest.importorskip("moto.server", reason="the extra dev brings it")
    s3fs = pytest.importorskip("s3fs", reason="the extras cloud and dev bring it")
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "local")
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem(skip_instance_cache=True)
    system.mkdir("fleet")
    yield system
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_frames_come_from_s3_once(incoming, bucket, capsys):
    for name in ("north/0.jpg", "south/0.jpg", "north/.half.jpg"):
        bucket.pipe_file(f"fleet/cams/{name}", Path("incoming", name).read_bytes())
    bucket.pipe_file("fleet/others/0.jpg", b"not asked for")
    arrived, _ = list_files("s3://fleet/cams")
    assert [arrival.name for arrival in arrived] == ["north/0.jpg", "south/0.jpg"]
    assert all(arrival.size > 0 and abs(arrival.changed - time.time()) < 60 for arrival in arrived)
    assert main(["fetch", "--frames=s3://fleet/cams", "--output=one"]) == 0
    assert [image["file_name"] for image in images("one")] == ["north/0.jpg", "south/0.jpg"]
    assert Path("one/images/north/0.jpg").read_bytes() == Path("incoming/north/0.jpg").read_bytes()
    bucket.pipe_file("fleet/cams/south/1.jpg", Path("incoming/south/1.jpg").read_bytes())
    assert main(["fetch", "--frames=s3://fleet/cams/", "--output=two", "--after", "one"]) == 0
    assert [image["file_name"] for image in images("two")] == ["south/1.jpg"]
    assert main(["fetch", "--frames=s3://gone/cams", "--output=three"]) == 1
    assert "s3://gone/cams" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written")])
def test_a_full_or_read_only_disk_is_told_and_the_same_command_goes_on(incoming, monkeypatch, capsys, code, words):
    def copy(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(code, os.strerror(code), str(source) if code == errno.ENOSPC else str(target))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", copy)
        assert main(["fetch", "--frames=incoming", "--output=one"]) == 1
    told = capsys.readouterr().err
    assert words in told and "one.partial/images/north/0.jpg" in told
    assert not list(Path("one.partial").rglob("*.tmp"))
    assert main(["fetch", "--frames=incoming", "--output=one"]) == 0


def test_no_frame_is_lost_by_a_clock_that_goes_back(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    Path("incoming/gate").mkdir(parents=True)
    encode(Path("once.ts"), "libx264", range(0, 280, 40))
    Path("incoming/gate/a.ts").write_bytes(2 * Path("once.ts").read_bytes())
    assert main(["fetch", "--frames=incoming", "--output=one", "--frame-interval=0.04"]) == 0
    assert [image["timestamp"] for image in images("one")] == pytest.approx([0.04 * number for number in range(14)])
    assert "gate/a.ts: the clock goes back at 1 frames" in caplog.text


def test_files_of_other_kinds_and_of_the_future_are_counted(incoming, capsys, caplog):
    Path("incoming/north/b.tif").write_bytes(b"tiff")
    os.utime("incoming/south/0.jpg", (time.time() + 1e6,) * 2)
    assert main(["fetch", "--frames=incoming", "--output=one", f"--until={time.time() + 60}"]) == 0
    assert "1 files changed after the limit of --until, or are dated in the future" in capsys.readouterr().out
    assert "1 .tif" in caplog.text
    assert len(images("one")) == 3
