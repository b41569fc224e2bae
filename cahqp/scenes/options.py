"""Options of `cahqp scenes`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cahqp.errors import ConfigError
from cahqp.scenes.conditions import out_of_range

_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "recordings": (1, 100_000),
    "frames": (1, 1_000_000),
    "first_recording": (0, 2**31),
    "rain": (0, 1),
    "fog": (0, 1),
    "overexposure": (0, 1),
    "waiting": (0, 0.9),
    "parked": (0, 20),
    "width": (64, 4096),
    "height": (48, 4096),
    "interval": (0.01, 3600),
    "quality": (30, 100),
}


@dataclass(frozen=True, kw_only=True)
class ScenesOptions:
    """Options of `cahqp scenes`; equal options give equal files.

    A camera is identified by the seed and its number, so cameras 0..3 can be rendered by day and again by night.

    Attributes:
        output: Directory to write. It must not exist, unless the same command began or finished it.
        seed: Seed of the world; zero or more.
        recordings: Number of cameras, with one recording each.
        frames: Frames per recording.
        first_recording: Number of the first camera; a held-out set begins where the others end.
        hour: First and last time of day, such as `[12, 15]`, between 12 (noon) and 24 (midnight). Recordings are
            spread evenly between them. Dusk is at about 19.
        rain: From 0 (dry) to 1 (pouring).
        fog: From 0 (clear) to 1 (dense).
        overexposure: From 0 (none) to 1 (bright parts lost in white).
        waiting: Share of the time, 0 to 0.9, in which the vehicles of a lane wait, as in a queue at lights.
        parked: Mean number of parked vehicles beside the road.
        width: Width of the images in pixels.
        height: Height of the images in pixels.
        interval: Seconds between frames.
        image_format: Small files as jpg, exact ones as png.
        quality: Quality of jpg files, 30 to 100.

    Raises:
        ConfigError: Options are out of range; all of them together.
    """

    output: Path
    seed: int = 0
    recordings: int = 4
    frames: int = 40
    first_recording: int = 0
    hour: tuple[float, float] = (12.0, 15.0)
    rain: float = 0.0
    fog: float = 0.0
    overexposure: float = 0.0
    waiting: float = 0.0
    parked: float = 0.0
    width: int = 320
    height: int = 192
    interval: float = 1.0
    image_format: Literal["jpg", "png"] = "jpg"
    quality: int = 92

    def __post_init__(self) -> None:
        """Check all ranges."""
        object.__setattr__(self, "hour", tuple(self.hour))
        problems = out_of_range(self, _RANGES, "--")
        if len(self.hour) != 2 or not 12 <= self.hour[0] <= self.hour[-1] <= 24:
            problems.append(f"--hour must be [first, last] with 12 <= first <= last <= 24, got {list(self.hour)}.")
        if self.image_format not in ("jpg", "png"):
            problems.append(f"--image-format must be jpg or png, got {self.image_format}.")
        if problems:
            raise ConfigError("\n".join(problems))
