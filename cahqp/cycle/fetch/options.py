"""Options of `cahqp fetch`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from cahqp.coco.naming_options import NamingOptions
from cahqp.coco.sources import is_video
from cahqp.edge.streams import is_webcam
from cahqp.errors import ConfigError, check_numbers

_LIVE = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp", "tcp")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True)
class FetchOptions(NamingOptions):
    """Copy images and videos of a folder or a URL, or record a stream or webcam. Writes `frames.json` (COCO).

    Videos become images. A recording ends at `--until`, at a limit or at an interruption (Ctrl-C), with its frames.

    Attributes:
        frames: Folder, fsspec URL such as `s3://bucket/cameras`, stream such as `rtsp://camera/1`, or webcam (0,
            /dev/video0). The first level of folders names the cameras. An http URL is a stream with `--until 2h` or
            `--when changed`, and if its path has the suffix of a video.
        output: New directory for the frames.
        after: Directories of earlier fetches, whose files are not fetched again.
        frame_interval: Seconds between the frames taken from a video or stream. Default: all frames.
        limit: Largest number of files, the first ones by name; of a stream, largest number of frames. Default: all.
        until: Of files, seconds since 1970: files that changed later may be incomplete, and are skipped. Of a stream,
            its length, such as `90s`, `30m`, `2h`, `1d`. Default: no limit.
        when: Frames of a stream to keep: all of the interval, or those with a changed region since the last kept one.
        max_megabytes: Largest size of the recorded frames of a stream in megabytes.
        when_full: At the limit of frames or megabytes, end the recording, or remove its oldest frames.
        camera: Name of the camera of a stream. Default: its host, or `webcam-0`.
        patience: Seconds without a frame after which a stream is given up.
    """

    frames: str
    output: Path
    after: list[Path] = field(default_factory=list)
    frame_interval: float | None = None
    limit: int | None = None
    until: float | str | None = None
    when: Literal["always", "changed"] = "always"
    max_megabytes: float = 10_000.0
    when_full: Literal["end", "remove-oldest"] = "end"
    camera: str | None = None
    patience: float = 60.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: An option is out of range, or is not for this kind of source.
        """
        check_numbers({}, {"--limit": self.limit})
        for name, value in (("frame-interval", self.frame_interval), ("max-megabytes", self.max_megabytes)):
            if value is not None and not value > 0:
                unit = "seconds" if name == "frame-interval" else "megabytes"
                message = f"--{name} must be a number of {unit} above 0, got {value}."
                raise ConfigError(message)
        if isinstance(self.until, str) and self.duration is None:
            message = f"--until must be seconds since 1970 or a length such as 90s, 30m, 2h or 1d, got {self.until!r}."
            raise ConfigError(message)
        live = self.live
        given = {"--when": self.when != "always", "--when-full": self.when_full != "end", "--camera": self.camera}
        if not live and (
            wrong := [name for name, value in given.items() if value] or (self.duration and ["--until LENGTH"])
        ):
            message = (
                f"{', '.join(wrong)} is for streams and webcams, and --frames is a folder or a store. Leave it out."
            )
            raise ConfigError(message)
        if live and self.naming is not None:
            message = (
                "--name-pattern and --time-from are for folders and stores: a stream has its own times. Leave them out."
            )
            raise ConfigError(message)
        if self.time_from == "modified" and "://" in self.frames:
            message = "--time-from modified needs a folder: stores do not keep the times of files. Use --name-pattern."
            raise ConfigError(message)
        if live and self.after:
            message = "--after is for folders and stores: a stream has no earlier frames. Leave it out."
            raise ConfigError(message)

    @property
    def live(self) -> bool:
        """Whether the source is a stream or webcam."""
        url = urlsplit(self.frames)
        asked = self.duration is not None or self.when != "always"
        web = url.scheme in ("http", "https") and (asked or is_video(url.path) or url.path.endswith(".m3u8"))
        return web or url.scheme in _LIVE or is_webcam(self.frames)

    @property
    def duration(self) -> float | None:
        """Length of the recording in seconds, if `until` is one."""
        match = _DURATION.fullmatch(self.until) if isinstance(self.until, str) else None
        return float(match[1]) * _SECONDS[match[2]] if match else None

    def end(self, start: float) -> float:
        """Return the end of a recording in seconds since 1970; infinite without a limit."""
        if self.duration is not None:
            return start + self.duration
        return float("inf") if self.until is None else float(self.until)
