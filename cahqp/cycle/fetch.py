"""`cahqp fetch`: copy frames from a folder or a URL into a directory, each of them once."""

from __future__ import annotations

import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
from pydantic import Field

from cahqp.coco.sources import SUFFIXES, is_image, is_video, report_left_out
from cahqp.coco.subset import Image, build_document, copy_file
from cahqp.coco.video import Video
from cahqp.edge.capture import read_bgr
from cahqp.errors import CahqpError, ConfigError, DataError, RunError
from cahqp.files import atomic_write, leads_out, natural_key, redact_text, redact_url, write_json
from cahqp.records import FileName, Record, Text, read_record
from cahqp.runs.directory import open_run

TAKEN = "taken.json"
"""List of the files that a fetch copies, written before it starts."""

_JPEG_QUALITY = 95
_MAX_LISTED = 10  # names of failed files in messages
_MAX_NAME = 240  # bytes; a temporary file beside the copy has a longer name


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """Copy images and videos of a folder or a URL; videos become images. Writes `frames.json` (COCO).

    Attributes:
        frames: A folder, or an fsspec URL such as `s3://bucket/cameras`. Its first level of folders names the cameras.
        output: New directory for the frames.
        after: Directories of earlier fetches, whose files are not fetched again.
        frame_interval: Seconds between the frames taken from a video. Default: all frames.
        limit: Largest number of files, the first ones by name. Default: all files.
        until: Seconds since 1970. Files that changed later may be incomplete, and are skipped. Default: no limit.
    """

    frames: str
    output: Path
    after: list[Path] = field(default_factory=list)
    frame_interval: float | None = None
    limit: int | None = None
    until: float | None = None

    def __post_init__(self) -> None:
        if self.frame_interval is not None and not self.frame_interval > 0:
            message = f"--frame-interval must be a number of seconds above 0, got {self.frame_interval}."
            raise ConfigError(message)


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be fetched.

    Attributes:
        name: Path below the listed folder. Its first folder is the camera, all its folders the recording.
        size: Size in bytes.
        changed: Time of the last change in seconds since 1970; 0 if the store does not provide it.
    """

    name: str
    size: int
    changed: float = 0.0


class _TakenRecord(Record):
    """Content of `taken.json`: sizes in bytes by name, and the names in ASCII that cannot be copied."""

    files: dict[FileName, int]
    skipped: list[Text] = Field(default_factory=list)

    @property
    def listed(self) -> set[str]:
        """All names."""
        return {*self.files, *self.skipped}


def fetch(options: FetchOptions) -> None:
    """Run `cahqp fetch`."""
    shown = redact_url(options.frames)
    settings = {
        "frames": PurePosixPath(shown).name,
        "frame_interval": options.frame_interval,
        "limit": options.limit,
    }
    inputs = {f"after.{number}": path for number, path in enumerate(options.after)}
    with open_run(options.output, "fetch", settings, inputs, resumable=True) as run:
        if run is None:
            return
        # The folder may grow while files are copied: an interrupted fetch keeps its first list.
        listed = run.work / TAKEN
        if not listed.is_file():
            new, skipped = list_new(options.frames, options.after, options.until, report=True)
            if not new:
                message = f"{shown} has no new image or video. Allowed are {SUFFIXES}."
                raise DataError(message)
            write_json(listed, {"files": {file.name: file.size for file in new[: options.limit]}, "skipped": skipped})
        taken = _read_taken(listed)
        names = sorted(taken.files, key=natural_key)  # JSON keys are sorted as text
        images, failures = _fetch_all(options, names, run.work)
        failures += [f"Skipped: {name} is not a portable file name. Rename it." for name in taken.skipped]
        if not images:
            shutil.rmtree(run.work / "checkpoints", ignore_errors=True)
            listed.unlink()  # a rerun lists the folder again
            lines = [f"None of the {len(names)} files of {shown} gave a frame:", *failures[:_MAX_LISTED]]
            raise DataError("\n".join(lines))
        for number, image in enumerate(images, 1):
            image["id"] = number
        write_json(run.work / "frames.json", build_document(images, [], []))
        total = len(names) + len(taken.skipped)
        run.metrics = {"files": total, "frames": len(images), "lost": len(failures)}
        total_line = f"{options.output}: {len(images)} frames of {total - len(failures)} files."
        print("\n".join([*failures[:_MAX_LISTED], total_line]))


def list_new(
    frames: str, after: list[Path], until: float | None = None, report: bool = False
) -> tuple[list[RemoteFile], list[str]]:
    """Return the files, by name, that no earlier fetch has listed and that did not change after `until`.

    Args:
        frames: Folder or URL.
        after: Directories of earlier fetches.
        until: Seconds since 1970; `None` for no limit.
        report: Print what is left out. A watched folder is listed again and again.

    Returns:
        The files, and the names in ASCII that cannot be copied.
    """
    known = {name for directory in after for name in _read_taken(directory / TAKEN).listed}
    latest = float("inf") if until is None else until
    files, unusable = list_files(frames, report)
    new = [file for file in files if file.name not in known]
    if report and (later := sum(file.changed > latest for file in new)):
        print(f"{later} files changed after the limit of --until, or are dated in the future. They are left for later.")
    return [file for file in new if file.changed <= latest], [name for name in unusable if name not in known]


def _read_taken(path: Path) -> _TakenRecord:
    taken = read_record(path, _TakenRecord, "Give the directory that `cahqp fetch` wrote.", DataError, 1 << 30)
    outside = [name for name in taken.files if not _is_usable(name)]
    if outside:
        message = f"{path} lists {outside[0]!a}, which is not a portable file name. Restore a copy."
        raise DataError(message)
    return taken


def list_files(frames: str, report: bool = False) -> tuple[list[RemoteFile], list[str]]:
    """Return all images and videos below a folder or a URL in natural order. Hidden files are incomplete, and omitted.

    Returns:
        The files, and the names in ASCII that cannot be copied.

    Raises:
        DataError: The folder does not exist, or the store cannot be reached.
    """
    files = list(_list_remote(frames) if "://" in frames else _list_local(Path(frames)))
    if report:
        report_left_out(redact_url(frames), [file.name for file in files])
    kept = [file for file in files if (is_image(file.name) or is_video(file.name)) and not f"/{file.name}".count("/.")]
    # A store may have an object with the name of a folder; a disk cannot have both.
    folders = {str(parent) for file in files for parent in PurePosixPath(file.name).parents}
    unusable = {file.name for file in kept if not _is_usable(file.name) or file.name in folders}
    usable = sorted((file for file in kept if file.name not in unusable), key=lambda file: natural_key(file.name))
    return usable, sorted(ascii(name) for name in unusable)


def _is_usable(name: str) -> bool:
    """Return whether a name can be copied, also as a temporary file, and written to JSON."""
    try:
        return not leads_out(name) and all(len(part.encode()) <= _MAX_NAME for part in PurePosixPath(name).parts)
    except UnicodeEncodeError:  # bytes that are not UTF-8
        return False


def _list_local(folder: Path) -> Iterator[RemoteFile]:
    if not folder.is_dir():
        message = f"{folder} is not a folder. Give the folder of the cameras, or a URL such as s3://bucket."
        raise DataError(message)
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:  # renamed by its writer since it was listed
            continue
        except OSError:  # such as a loop of links: copying reports it
            yield RemoteFile(path.relative_to(folder).as_posix(), 0)
            continue
        if path.is_symlink() and stat.S_ISDIR(status.st_mode):
            yield RemoteFile(f"{path.relative_to(folder).as_posix()}/", 0)
        elif stat.S_ISREG(status.st_mode):
            yield RemoteFile(path.relative_to(folder).as_posix(), status.st_size, status.st_mtime)


def _list_remote(url: str) -> Iterator[RemoteFile]:
    system, root = _file_system(url)
    with _store_errors(url, f"{redact_url(url)} cannot be listed", "Check the URL and the credentials of fsspec."):
        entries: dict[str, dict[str, Any]] = system.find(root, detail=True)
    for path, entry in entries.items():
        changed: Any = entry.get("LastModified") or entry.get("created") or entry.get("mtime") or 0.0
        seconds = changed.timestamp() if isinstance(changed, datetime) else float(changed)
        yield RemoteFile(path.removeprefix(root).lstrip("/"), int(entry.get("size") or 0), seconds)


def _file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it."""
    shown = redact_url(url)
    with _store_errors(url, f"{shown} cannot be reached", "Check the network, the URL and the credentials."):
        try:
            import fsspec

            system, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            message = (
                f"{shown} cannot be opened ({redact_text(error, url)}): pip install 'cahqp[cloud]', or check the URL."
            )
            raise ConfigError(message) from error
    system.invalidate_cache()
    return system, str(root).rstrip("/")


@contextmanager
def _store_errors(url: str, problem: str, advice: str, kind: type[CahqpError] = DataError) -> Iterator[None]:
    """Turn the errors of a store, which has its own exceptions, into an error with advice and without secrets."""
    try:
        yield
    except CahqpError:
        raise
    except Exception as error:
        message = f"{problem} ({redact_text(error, url)}). {advice}"
        raise kind(message) from error


def _fetch_all(options: FetchOptions, names: list[str], work: Path) -> tuple[list[Image], list[str]]:
    """Return the images of the copied files, and a line for each file without a frame, which must not stop a fleet."""
    images: list[Image] = []
    failures: list[str] = []
    folders, taken = _video_folders(names), set(names)
    for name in names:
        local = work / ("images" if is_image(name) else "checkpoints/videos") / name
        try:
            if not local.is_file():
                _copy(options.frames, name, local)
            if name in folders:
                images += _extract_frames(local, folders[name], taken, work, options.frame_interval)
            else:
                images.append(_image(local, name, str(PurePosixPath(name).parent), None))
        except (DataError, FileNotFoundError, PermissionError) as error:
            failures.append(f"Skipped: {error}")
    return images, failures


def _video_folders(names: list[str]) -> dict[str, str]:
    """Return the folder of each video's frames: its name without the suffix, unless another file has that name."""
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in names if not is_image(name)}
    counts = Counter([*stems.values(), *names])
    return {name: stem if counts[stem] == 1 else name for name, stem in stems.items()}


def _copy(frames: str, name: str, local: Path) -> None:
    if "://" not in frames:
        copy_file(Path(frames) / name, local)
        return
    system, root = _file_system(frames)
    shown = f"{redact_url(frames)}/{name}"
    with _store_errors(frames, f"{shown} cannot be read", "Rerun the same command to resume.", RunError):
        try:
            with atomic_write(local, "wb") as file:
                file.write(system.cat_file(f"{root}/{name}"))
        except FileNotFoundError as error:
            message = f"{shown} was removed after it was listed."
            raise DataError(message) from error


def _extract_frames(
    video: Path, folder: str, taken: set[str], work: Path, frame_interval: float | None
) -> list[Image]:  # fmt: skip
    """Extract the first frame at or after each multiple of `frame_interval` seconds from a video.

    Args:
        video: Local copy of the video.
        folder: Folder of its frames, which is also their recording.
        taken: File names in use. The names of the frames are added.
        work: Directory of the fetch.
        frame_interval: Interval in seconds; `None` extracts all frames.
    """
    images: list[Image] = []
    due = 0.0
    with Video(video, str(video.relative_to(work / "checkpoints/videos"))) as frames:
        for frame in frames:
            if frame_interval is not None and frame.seconds < due - 1e-6:
                continue
            due = (frame.seconds // frame_interval + 1) * frame_interval if frame_interval is not None else 0.0
            name = _free_name(f"{folder}/{round(1000 * frame.seconds):09d}", taken)
            taken.add(name)
            if not (work / "images" / name).is_file():
                encoded = cv2.imencode(".jpg", frame.pixels(), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
                with atomic_write(work / "images" / name, "wb") as file:
                    file.write(encoded.tobytes())
            images.append(_image(work / "images" / name, name, folder, round(frame.seconds, 6)))
    return images


def _free_name(stem: str, taken: set[str]) -> str:
    """Return an unused name of a frame: two frames of a video may have the same millisecond."""
    name, number = f"{stem}.jpg", 2
    while name in taken:
        name, number = f"{stem}-{number}.jpg", number + 1
    return name


def _image(path: Path, name: str, recording: str, seconds: float | None) -> Image:
    """Return the COCO entry of an image as stored. A broken image is kept, because drift counts it as a fault."""
    pixels = read_bgr(path)
    height, width = (1, 1) if pixels is None else (int(side) for side in pixels.shape[:2])
    recording = "" if recording == "." else recording
    camera = PurePosixPath(recording).parts[0] if recording else "camera"
    return {
        "file_name": name,
        "height": height,
        "width": width,
        "camera": camera,
        "recording": recording or camera,
        **({} if seconds is None else {"timestamp": seconds}),
    }
