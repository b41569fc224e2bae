"""Edge packages see exactly the images and videos that training sees."""

import io
import json
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from cahqp.data.frames import open_frames
from cahqp.edge.capture import read_bgr, read_frames, read_valid_frames
from cahqp.errors import DataError


def picture(mode="RGB"):
    image = Image.effect_mandelbrot((160, 120), (-2, -1, 1, 1), 50).convert("RGB")
    ImageDraw.Draw(image).ellipse((20, 20, 90, 70), (200, 30, 60))
    return image.convert(mode)


def encoded(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    picture(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(side):
    """A PNG of a few bytes whose header states `side` x `side` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


REFUSED = {
    "torn jpeg": (".jpg", lambda: encoded("JPEG")[:-900]),
    "half jpeg": (".jpg", lambda: encoded("JPEG")[: len(encoded("JPEG")) // 2]),
    "torn png": (".png", lambda: encoded("PNG")[:-900]),
    "gif": (".jpg", lambda: encoded("GIF", "P")),
    "tiff": (".png", lambda: encoded("TIFF")),
    "avif": (".jpg", lambda: encoded("AVIF")),
    "ppm": (".bmp", lambda: encoded("PPM")),
    "huge header": (".png", lambda: bomb(60_000)),
    "more than 100 megapixels": (".png", lambda: bomb(11_000)),
    "nothing": (".jpg", lambda: b""),
}


@pytest.mark.parametrize(("suffix", "content"), REFUSED.values(), ids=REFUSED)
def test_images_that_training_refuses_are_refused_at_the_edge(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content())
    image = {"id": 1, "file_name": path.name, "width": 160, "height": 120}
    (tmp_path / "a.json").write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
    with pytest.raises(DataError):
        open_frames([tmp_path / "a.json"]).read(0)
    assert read_bgr(path) is None
    with pytest.raises(DataError, match="cannot be decoded"):
        list(read_valid_frames(str(tmp_path / "a.json")))


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 75}), ("JPEG", "RGB", {"quality": 95, "subsampling": 0, "progressive": True}),
        ("JPEG", "L", {}), ("JPEG", "CMYK", {}), ("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "P", {}),
        ("PNG", "L", {}), ("BMP", "RGB", {}), ("WEBP", "RGB", {"quality": 80}),
    ],
)  # fmt: skip
def test_pixels_are_those_of_training_and_those_of_opencv(tmp_path, kind, mode, options):
    path = tmp_path / f"a.{'jpg' if kind == 'JPEG' else kind.lower()}"
    path.write_bytes(encoded(kind, mode, **options))
    trained = open_frames([tmp_path]).read(0)
    assert (read_bgr(path)[..., ::-1] == trained).all()
    if mode != "CMYK":  # OpenCV rounds its conversion differently
        assert (read_bgr(path) == cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)).all()


@pytest.fixture
def cut(tmp_path):
    """A video of 18 s by its header, of which 5 s can be played."""
    path = tmp_path / "street.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for level in range(180):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    data = bytearray(path.read_bytes())
    at = data.rindex(b"elst") + 12
    data[at : at + 4] = struct.pack(">I", 5000)
    path.write_bytes(data)
    return path


def test_a_video_that_ends_early_gives_the_frames_and_the_report_of_training(cut, caplog):
    trained = [frame.name for frame in open_frames([cut]).frames]
    assert [frame.name for frame in read_frames(str(cut))] == trained
    assert "street.mp4: 50 frames decode of 180 in the header" in caplog.text
