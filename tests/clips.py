"""Video clips that tests make: frame i is grey 8 i at a given time, in any codec and container that PyAV can write."""

import struct
from fractions import Fraction

import av
import numpy as np

UNIT = Fraction(1, 1000)
B_FRAMES = {"x264-params": "keyint=12:min-keyint=12:bframes=3:b-adapt=0:open-gop=1:log-level=0"}
OPTIONS = {"libx264": B_FRAMES, "libx265": {"x265-params": "keyint=12:min-keyint=12:log-level=none"}}


def encode(path, codec, milliseconds, *, size=(64, 48), rotation=0, faststart=False):
    """Write a clip with a frame at each time."""
    full_range = codec == "mjpeg"
    unit = Fraction(1, 10) if path.suffix == ".avi" else UNIT  # AVI has a constant rate
    with av.open(str(path), "w", options={"movflags": "+faststart"} if faststart else {}) as file:
        stream = file.add_stream(codec, rate=10, options=OPTIONS.get(codec, {}))
        (stream.width, stream.height), stream.pix_fmt = size, "yuvj420p" if full_range else "yuv420p"
        stream.codec_context.time_base = unit
        if rotation:
            stream.set_display_rotation(rotation)
        for number, time in enumerate(milliseconds):
            pixels = np.full((size[1], size[0], 3), 8 * number % 250, np.uint8)
            pixels[: size[1] // 2, : size[0] // 2, 0] = 255  # its place shows a rotation
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = int(time * UNIT / unit), unit
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def edit_list(path, skip=0, duration=None):
    """Let the edit list of an MP4 file begin later by `skip` units of its media, and last `duration` milliseconds."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"elst") + 12
    length, start = struct.unpack(">Ii", data[at : at + 8])
    data[at : at + 8] = struct.pack(">Ii", length if duration is None else duration, start + skip)
    path.write_bytes(data)
    return path
