"""Camera, recording and time of frames from the names of their files, from EXIF or from the times of the files."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from cahqp.coco.exif import read_exif_time
from cahqp.coco.time_stamps import SteadyClock
from cahqp.errors import ConfigError, DataError
from cahqp.files import natural_key

_FIELDS = {"camera": r"[^/]+?", "recording": r"[^/]+?", "index": r"\d+", "": r"[^/]*?"}
_DIRECTIVES = {
    "Y": r"\d{4}", "y": r"\d\d", "m": r"\d\d", "d": r"\d\d", "H": r"\d\d", "M": r"\d\d", "S": r"\d\d", "f": r"\d{1,6}",
    "j": r"\d{3}", "I": r"\d\d", "p": r"[AaPp][Mm]", "b": r"[A-Za-z]{3}", "z": r"Z|[+-]\d\d:?\d\d", "%": "%",
    "s": r"\d{9,10}(?:\.\d+)?|\d{12,13}",
}  # fmt: skip
_FORMS = "{camera}, {recording}, {index}, {time:%Y%m%dT%H%M%S} and {} for any text"
_LISTED = 3  # names in messages
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC).timestamp()
_LOOKS_TIMED = re.compile(r"20\d\d[-_]?[01]\d[-_]?[0-3]\d|(?<!\d)1[5-9]\d{8}(?!\d)")

_log = logging.getLogger(__name__)


class Origin(NamedTuple):
    """Origin of a frame.

    Attributes:
        camera: Name of the camera; empty if the name does not contain it.
        recording: Name of the recording; empty if the name does not contain it.
        number: Number in the name; `None` if it contains none.
        seconds: Seconds since 1970; `None` if unknown.
    """

    camera: str = ""
    recording: str = ""
    number: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Naming:
    """Rule for camera and time of frames.

    Attributes:
        pattern: Pattern of the end of a path, such as `{camera}/{time:%Y-%m-%d}/{time:%H.%M.%S}_{index}.jpg`; the
            suffix may be left out. Times have directives of `strptime`, and `%s` for (milli)seconds since 1970.
        time_from: Take the time from EXIF (DateTimeOriginal, OffsetTimeOriginal), or from the last change of the file.
        time_zone: IANA name of the zone of times without an offset, such as Europe/Berlin.
    """

    pattern: str | None = None
    time_from: Literal["exif", "modified"] | None = None
    time_zone: str = "UTC"

    def __post_init__(self) -> None:
        """Check pattern and zone.

        Raises:
            ConfigError: One of them is invalid.
        """
        _zone(self.time_zone)
        if self.pattern is not None:
            _compile(self.pattern)
            if self.time_from is not None and "{time:" in self.pattern:
                message = (
                    "--time-from and {time:...} in --name-pattern are two sources of the time. Remove one of them."
                )
                raise ConfigError(message)

    def origins(self, names: Sequence[str], files: Sequence[Path], source: str) -> list[Origin]:
        """Return the origin of each frame, with increasing times within a camera. No frame is left out.

        A warning counts times that were corrected, that the end of summer time repeats, and that cannot be right.

        Args:
            names: Paths below the source, or whole paths.
            files: The files, for EXIF and their times.
            source: Name of the source in messages.

        Raises:
            DataError: Names do not match the pattern, or files have no EXIF time.
        """
        found = self._matched(names, source) if self.pattern is not None else [_Match() for _ in names]
        order = sorted(range(len(names)), key=lambda n: (found[n].number or 0, natural_key(names[n])))
        times = self._file_times(files, source) if self.time_from else self._name_times(found, order, source)
        origins = [Origin(m.camera, m.recording, m.number, t) for m, t in zip(found, times, strict=True)]
        return _steady(origins, order, source)

    def times(self, names: Sequence[str], files: Sequence[Path], source: str) -> list[float | None]:
        """Return the times of `origins`."""
        return [origin.seconds for origin in self.origins(names, files, source)]

    def check_names(self, names: Sequence[str], source: str) -> None:
        """Check that all names match the pattern.

        Raises:
            DataError: Some do not.
        """
        if self.pattern is not None:
            self._matched(names, source)

    def _matched(self, names: Sequence[str], source: str) -> list[_Match]:
        matches = [_match(self.pattern or "", name) for name in names]
        missed = [name for name, match in zip(names, matches, strict=True) if match is None]
        if missed:
            shown = ", ".join(missed[:_LISTED])
            message = (
                f"{source}: {len(missed)} of {len(names)} names do not match --name-pattern {self.pattern!r}, such as "
                f"{shown}. Patterns contain {_FORMS}; move other files away."
            )
            raise DataError(message)
        return [match for match in matches if match is not None]

    def _file_times(self, files: Sequence[Path], source: str) -> list[float | None]:
        if self.time_from == "modified":
            return [file.stat().st_mtime for file in files]
        times: list[float | None] = []
        for file in files:
            moment = read_exif_time(file)
            times.append(None if moment is None else _localised(moment, _zone(self.time_zone)).timestamp())
        missing = [file.name for file, time in zip(files, times, strict=True) if time is None]
        if missing:
            shown = ", ".join(missing[:_LISTED])
            message = (
                f"{source}: {len(missing)} of {len(files)} files have no EXIF time, such as {shown}. Use a time in "
                "--name-pattern, or --time-from modified."
            )
            raise DataError(message)
        return times

    def _name_times(self, found: Sequence[_Match], order: Sequence[int], source: str) -> list[float | None]:
        """Return the times in names. The order of a camera's frames decides in an hour that occurs twice."""
        zone, kinds = _zone(self.time_zone), Counter[str]()
        times: list[float | None] = [None] * len(found)
        last: dict[str, datetime] = {}
        for number in order:
            moment = found[number].moment
            if moment is None:
                continue
            if moment.tzinfo is None:
                first, second = (_localised(moment, zone, fold).timestamp() for fold in (0, 1))
                before = last.get(found[number].camera)
                back = before is not None and timedelta(0) < before - moment < timedelta(hours=2)
                late = back or (before is not None and before.fold == 1 and before <= moment)
                kinds["do not exist in this zone (start of summer time)"] += first > second
                kinds["lie in the hour that the end of summer time repeats"] += first < second
                times[number] = second if first < second and late else first
                last[found[number].camera] = moment.replace(fold=int(first < second and late))
            else:
                times[number] = moment.timestamp()
        texts = [f"{count} times {kind}" for kind, count in kinds.items() if count]
        _warn(f"{source}: {'; '.join(texts)} in {self.time_zone}. Give UTC or an offset (%z)." if texts else "")
        return times


class _Match(NamedTuple):
    camera: str = ""
    recording: str = ""
    number: int | None = None
    moment: datetime | None = None


def _match(pattern: str, name: str) -> _Match | None:
    expression, formats = _compile(pattern)
    found = expression.fullmatch(name)
    if found is None:
        return None
    values = found.groupdict()
    try:
        moment = _moment([values[f"time{number}"] for number in range(len(formats))], formats)
    except (ValueError, OverflowError):  # such as a month 13
        return None
    index = values.get("index")
    return _Match(values.get("camera", ""), values.get("recording", ""), int(index) if index else None, moment)


def _moment(texts: Sequence[str], formats: Sequence[str]) -> datetime | None:
    if not formats:
        return None
    if formats == ("%s",):
        seconds = float(texts[0]) / (1000 if len(texts[0].partition(".")[0]) > 11 else 1)
        return datetime.fromtimestamp(seconds, UTC)
    return datetime.strptime("\n".join(texts), "\n".join(formats))


@lru_cache(maxsize=16)
def _compile(pattern: str) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """Return the expression of a pattern, and the formats of its times.

    Raises:
        ConfigError: A field or directive is unknown, or there is no field.
    """
    parts, text = re.split(r"\{([^{}]*)\}", pattern), ""
    formats: list[str] = []
    seen: set[str] = set()
    for number, part in enumerate(parts):
        name, colon, form = part.partition(":")
        if number % 2 == 0:
            text += re.escape(part)
        elif name == "time" and colon:
            text += f"(?P<time{len(formats)}>{_expression(form, pattern)})"
            formats.append(form)
        elif name not in _FIELDS or colon:
            raise _invalid(pattern, f"{{{part}}}")
        elif not name:
            text += _FIELDS[name]
        else:
            text += f"(?P={name})" if name in seen else f"(?P<{name}>{_FIELDS[name]})"
            seen.add(name)
    if not seen and not formats:
        raise _invalid(pattern, "a pattern without fields")
    if "%s" in "".join(formats) and formats != ["%s"]:
        raise _invalid(pattern, "%s beside other times")
    return re.compile(rf"(?:.*/)?{text}(?:\.\w+)?"), tuple(formats)


def _expression(form: str, pattern: str) -> str:
    """Return the expression of a format of `strptime`."""
    text = ""
    for literal, directive in re.findall(r"([^%]+)|%(.?)", form):
        if not literal and directive not in _DIRECTIVES:
            raise _invalid(pattern, f"%{directive}")
        text += re.escape(literal) if literal else f"(?:{_DIRECTIVES[directive]})"
    if not text:
        raise _invalid(pattern, "{time:}")
    return text


def _invalid(pattern: str, part: str) -> ConfigError:
    directives = " ".join(f"%{name}" for name in _DIRECTIVES)
    return ConfigError(f"--name-pattern {pattern!r} contains {part}. Allowed are {_FORMS}, with {directives}.")


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:  # ZoneInfoNotFoundError is a KeyError
        message = f"--time-zone must be the IANA name of a time zone, such as Europe/Berlin or UTC, got {name!r}."
        raise ConfigError(message) from error


def _localised(moment: datetime, zone: tzinfo, fold: int = 0) -> datetime:
    return moment.replace(tzinfo=zone, fold=fold) if moment.tzinfo is None else moment


def _steady(origins: list[Origin], order: Sequence[int], source: str) -> list[Origin]:
    """Return the origins with times that increase within each recording, in the order of indices, else of times."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number in order:
        if origins[number].seconds is not None:
            groups[origins[number].camera, origins[number].recording].append(number)
    now, odd = time.time(), 0
    for (camera, recording), numbers in groups.items():
        if any(origins[number].number is None for number in numbers):
            numbers = sorted(numbers, key=lambda number: origins[number].seconds or 0.0)
        clock = SteadyClock()
        times = [origins[number].seconds for number in numbers]
        odd += sum(not _EARLIEST < (seconds or 0.0) < now + 86_400 for seconds in times)
        for number, pair in zip(numbers, zip(times, [*times[1:], None], strict=True), strict=True):
            origins[number] = origins[number]._replace(seconds=clock.correct(*pair))
        problems = clock.problems()
        name = "/".join(part for part in (camera, recording) if part)
        _warn(f"{source}{f', {name}' if name else ''}: {'; '.join(problems)}." if problems else "")
    _warn(f"{source}: {odd} times are before 1990 or in the future. Check the clocks of the cameras." if odd else "")
    return origins


def hint_at_times(names: Sequence[str], source: str) -> None:
    """Log that names contain times, if most of them do and no pattern is given."""
    timed = sum(_LOOKS_TIMED.search(name) is not None for name in names)
    if len(names) > 1 and timed > 0.9 * len(names):
        _warn(f"{source}: names such as {names[0]} seem to contain times. --name-pattern reads them.")


@lru_cache(maxsize=256)
def _warn(text: str) -> None:
    if text:
        _log.warning(text)
