"""Light and weather of a recording, and their dependence on the time of day."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import ConfigError

Array = NDArray[np.float32]

_RANGES = {"hour": (12.0, 24.0), "rain": (0.0, 1.0), "fog": (0.0, 1.0), "overexposure": (0.0, 1.0)}

NIGHT_AMBIENT = np.array([0.135, 0.142, 0.185])
DAY_AMBIENT = np.array([0.74, 0.77, 0.82])
HIGH_SUN = np.array([0.34, 0.32, 0.29])
LOW_SUN = np.array([0.46, 0.28, 0.12])


def out_of_range(values: Any, ranges: Mapping[str, tuple[float, float]], prefix: str = "") -> list[str]:
    """Return a message for each attribute that is outside its range or not a number.

    Args:
        values: Object with the attributes.
        ranges: Smallest and largest allowed value by attribute.
        prefix: Precedes the attribute in messages.
    """
    given = {name: getattr(values, name) for name in ranges}
    return [
        f"{prefix}{name} must be between {low:g} and {high:g}, got {given[name]}."
        for name, (low, high) in ranges.items()
        if not low <= given[name] <= high
    ]


def smoothstep(low: float, high: float, value: float) -> float:
    """Return a smooth rise from 0 at `low` to 1 at `high`."""
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    return share * share * (3 - 2 * share)


def _mix(first: NDArray[np.float64], second: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    return first * (1 - share) + second * share


@dataclass(frozen=True)
class Conditions:
    """Time of day and weather of a recording.

    Attributes:
        hour: Time of day, from 12 (noon) to 24 (midnight). The sun sets at about 19; night begins at 21.
        rain: From 0 (dry) to 1 (pouring).
        fog: From 0 (clear) to 1 (visibility about 25 m).
        overexposure: From 0 (well exposed) to 1 (bright parts lost in white).

    Raises:
        ConfigError: Values are outside their range or not numbers; all of them together.
    """

    hour: float = 12.0
    rain: float = 0.0
    fog: float = 0.0
    overexposure: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if problems := out_of_range(self, _RANGES):
            raise ConfigError("\n".join(problems))

    @property
    def sun_elevation(self) -> float:
        """Elevation of the sun in degrees above the horizon; negative after sunset."""
        return 60 * math.cos(math.pi * (self.hour - 12.5) / 13.2) if self.hour > 12.5 else 60.0

    @property
    def sun(self) -> float:
        """Strength of direct sunlight in 0..1, which casts shadows."""
        return smoothstep(0, 28, self.sun_elevation) * (1 - self.rain) * (1 - self.fog)

    @property
    def daylight(self) -> float:
        """Strength of the light from the sky in 0..1; zero from 21:00."""
        return smoothstep(-26, 12, self.sun_elevation)

    @property
    def darkness(self) -> float:
        """1 - daylight; controls sensor noise, blur and glare."""
        return 1 - self.daylight

    @property
    def lamps(self) -> float:
        """Strength of street lamps and lit windows in 0..1."""
        return 1 - smoothstep(-8, 6, self.sun_elevation)

    @property
    def headlights(self) -> float:
        """Strength of the vehicles' lights in 0..1; above 0 by day in bad weather."""
        return max(1 - smoothstep(-6, 12, self.sun_elevation), 0.5 * self.rain, 0.5 * self.fog)

    @cached_property
    def ambient(self) -> Array:
        """(3,) RGB factor of the light from the sky; decreases slightly until midnight."""
        night = NIGHT_AMBIENT * (1 - 0.25 * smoothstep(20.5, 24, self.hour))
        gloom = 1 - 0.22 * self.rain * self.daylight
        return (_mix(night, DAY_AMBIENT, self.daylight) * gloom).astype(np.float32)

    @cached_property
    def sunlight(self) -> Array:
        """(3,) RGB factor added by direct sunlight."""
        colour = _mix(LOW_SUN, HIGH_SUN, smoothstep(2, 30, self.sun_elevation))
        return (colour * self.sun).astype(np.float32)

    def sun_direction(self, heading: float) -> Array:
        """Return the (3,) unit vector towards the sun for a camera with the compass direction `heading` (radians).

        The elevation is at least 14 degrees, so that shadows stay finite while they fade at dusk.
        """
        elevation = math.radians(max(self.sun_elevation, 14.0))
        azimuth = math.radians(15 * (self.hour - 12) + 180) - heading
        flat = math.cos(elevation)
        vector = [flat * math.sin(azimuth), flat * math.cos(azimuth), math.sin(elevation)]
        return np.array(vector, dtype=np.float32)
