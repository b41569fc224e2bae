"""Options of the commands that read camera and time of frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cahqp.coco.naming import Naming


@dataclass(frozen=True, kw_only=True)
class NamingOptions:
    """Camera, recording and time of frames.

    Attributes:
        name_pattern: Pattern of file names and folders with camera and time, such as
            `{camera}/{time:%Y%m%d_%H%M%S}_{index}.jpg`. Every name must match. Default: names contain neither.
        time_from: Take the time of frames from EXIF, or from the last change of the file. Default: from the names.
        time_zone: IANA name of the zone of times without an offset, such as Europe/Berlin.
    """

    name_pattern: str | None = None
    time_from: Literal["exif", "modified"] | None = None
    time_zone: str = "UTC"

    @property
    def naming(self) -> Naming | None:
        """The rule, `None` without one.

        Raises:
            ConfigError: It is invalid.
        """
        if self.name_pattern is None and self.time_from is None:
            return None
        return Naming(pattern=self.name_pattern, time_from=self.time_from, time_zone=self.time_zone)

    @property
    def naming_settings(self) -> dict[str, Any]:
        """Settings for the manifest; none by default."""
        if self.naming is None:
            return {}
        return {"name_pattern": self.name_pattern, "time_from": self.time_from, "time_zone": self.time_zone}
