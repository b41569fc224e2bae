"""`cahqp fetch`: frames from a folder or a URL into a directory of their own, each of them once."""

from __future__ import annotations

import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import cv2

from cahqp.coco.sources import SUFFIXES, is_image, is_video
from cahqp.coco.subset import build_document, copy_file
from cahqp.cycle.rounds.incoming import TAKEN
from cahqp.edge.frames import read_picture
from cahqp.errors import CahqpError, ConfigError, DataError, RunError
from cahqp.files import atomic_write, natural_key, read_json, redact_url, write_json
from cahqp.runs.directory import RunDirectory

_QUALITY = 95
_TOLD = 10  # files that gave nothing, by name


@dataclass(frozen=True)
class Arrival:
    """A file that can be fetched.

    Attributes:
        name: Relative to where it was looked for; its first folder is the camera, all its folders the recording.
        size: In bytes.
        changed: Seconds since 1970, or 0 where the store does not say.
    """

    name: str
    size: int
    changed: float = 0.0


def fetch(
    frames: str,
    output: Path,
    after: list[Path] | None = None,
    frame_interval: float | None = None,
    limit: int | None = None,
    until: float | None = None,
) -> None:
    """Bring images and videos of a folder or a URL here; videos become images. Writes `frames.json` (COCO).

    Args:
        frames: A folder, or an fsspec URL such as `s3://bucket/cameras`. Files lie in folders named like cameras.
        output: Directory to make.
        after: Directories of earlier fetches, whose files are not taken again. Default none.
        frame_interval: Seconds between the frames taken from a video; all of them where not given.
        limit: Most files; the first by name. Default all.
        until: Seconds since 1970; files that changed after it may still be written, and are left for later. Default
            all.
    """
    if frame_interval is not None and not frame_interval > 0:
        message = f"--frame_interval is a number of seconds above 0, got {frame_interval}."
        raise ConfigError(message)
    settings = {"frames": PurePosixPath(redact_url(frames)).name, "frame_interval": frame_interval, "limit": limit}
    inputs = {f"after.{number}": path for number, path in enumerate(after or [])}
    run = RunDirectory(output, "fetch", settings, inputs, seed=0)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    # What is there grows while we look: a fetch that was begun keeps to what it saw first.
    seen = run.work / TAKEN
    if not seen.is_file():
        incoming = new(frames, after or [], until)[:limit]
        if not incoming:
            message = f"{redact_url(frames)} has no new image or video. Allowed are {SUFFIXES}."
            raise DataError(message)
        write_json(seen, {"files": {arrival.name: arrival.size for arrival in incoming}})
    names = sorted(read_json(seen)["files"], key=natural_key)  # JSON sorts by text
    images, lost = _bring_all(frames, names, run.work, frame_interval)
    if not images:
        shutil.rmtree(run.work / "checkpoints", ignore_errors=True)
        seen.unlink()  # so that the same command looks again
        message = f"None of the {len(names)} files of {redact_url(frames)} gave a frame:\n" + "\n".join(lost[:_TOLD])
        raise DataError(message)
    for number, image in enumerate(images, 1):
        image["id"] = number
    write_json(run.work / "frames.json", build_document(images, [], []))
    run.finish({"files": len(names), "frames": len(images), "lost": len(lost)})
    print("\n".join([*lost[:_TOLD], f"{output}: {len(images)} frames of {len(names) - len(lost)} files."]))


def _bring_all(
    frames: str, names: list[str], work: Path, frame_interval: float | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Bring files; one camera's broken video must not stop a fleet.

    Returns:
        The images, and a line for each file that gave none.
    """
    images: list[dict[str, Any]] = []
    lost: list[str] = []
    folders, given = _folders(names), set(names)
    for name in names:
        try:
            local = _local_copy(frames, name, work)
            if name in folders:
                images += _frames_of(local, name, folders[name], given, work, frame_interval)
            else:
                images.append(_image(local, name, str(PurePosixPath(name).parent), None))
        except (DataError, FileNotFoundError) as error:
            lost.append(f"Left out: {error}")
    return images, lost


def new(frames: str, after: list[Path], until: float | None = None) -> list[Arrival]:
    """Return the files that no earlier fetch has taken, and that did not change after a time, by name."""
    taken = {name for directory in after for name in read_json(directory / TAKEN)["files"]}
    late = float("inf") if until is None else until
    return [arrival for arrival in listing(frames) if arrival.name not in taken and arrival.changed <= late]


def is_url(frames: str) -> bool:
    """Say whether frames lie in a store that fsspec reaches."""
    return "://" in frames


def listing(frames: str) -> list[Arrival]:
    """Return all images and videos below a folder or a URL, by name: `2.jpg` before `10.jpg`.

    Hidden ones are still being written.

    Raises:
        DataError: There is no such folder, or the store cannot be reached.
    """
    found = list(_remote(frames) if is_url(frames) else _local(Path(frames)))
    kept = [a for a in found if (is_image(a.name) or is_video(a.name)) and _shown(a.name)]
    return sorted(kept, key=lambda arrival: natural_key(arrival.name))


def _shown(name: str) -> bool:
    return not any(part.startswith(".") for part in PurePosixPath(name).parts)


def _local(folder: Path) -> Iterator[Arrival]:
    if not folder.is_dir():
        message = f"{folder} is no folder. Give the folder that the cameras write into, or a URL such as s3://bucket."
        raise DataError(message)
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:  # renamed by who writes it; it is listed under its new name, or the next time
            continue
        if stat.S_ISREG(status.st_mode):
            yield Arrival(path.relative_to(folder).as_posix(), status.st_size, status.st_mtime)


def _remote(url: str) -> Iterator[Arrival]:
    system, root = _system(url)
    try:
        entries: dict[str, dict[str, Any]] = system.find(root, detail=True)
    except Exception as error:  # every store has errors of its own
        message = f"{redact_url(url)} cannot be listed ({error}). Check the URL, and the credentials that fsspec finds."
        raise DataError(message) from error
    for path, entry in entries.items():
        changed: Any = entry.get("LastModified") or entry.get("created") or entry.get("mtime") or 0.0
        seconds = changed.timestamp() if isinstance(changed, datetime) else float(changed)
        yield Arrival(path.removeprefix(root).lstrip("/"), int(entry.get("size") or 0), seconds)


def _system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and its path there."""
    try:
        import fsspec
    except ModuleNotFoundError as error:
        message = f"{redact_url(url)} needs fsspec, and s3:// needs s3fs: pip install 'cahqp[cloud]'."
        raise ConfigError(message) from error
    try:
        system, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        message = f"{redact_url(url)} cannot be opened ({error}). For s3:// install 'cahqp[cloud]'."
        raise ConfigError(message) from error
    except Exception as error:  # some stores connect at once, and each has errors of its own
        message = f"{redact_url(url)} cannot be reached ({error}). Check the network, the URL and the credentials."
        raise DataError(message) from error
    system.invalidate_cache()
    return system, str(root).rstrip("/")


def _folders(names: list[str]) -> dict[str, str]:
    """Return for each video the folder of its frames: its name without the suffix, where nothing else has that name."""
    bare = {name: str(PurePosixPath(name).with_suffix("")) for name in names if not is_image(name)}
    common = Counter([*bare.values(), *names])
    return {name: stem if common[stem] == 1 else name for name, stem in bare.items()}


def _local_copy(frames: str, name: str, work: Path) -> Path:
    """Bring one file, unless it is here, and return where it lies."""
    local = work / ("images" if is_image(name) else "checkpoints/videos") / name
    if not local.is_file():
        _copy(frames, name, local)
    return local


def _copy(frames: str, name: str, local: Path) -> None:
    if not is_url(frames):
        copy_file(Path(frames) / name, local)
        return
    system, root = _system(frames)
    try:
        with atomic_write(local, "wb") as file:
            file.write(system.cat_file(f"{root}/{name}"))
    except FileNotFoundError as error:
        message = f"{redact_url(frames)}/{name} is gone since it was listed."
        raise DataError(message) from error
    except CahqpError:
        raise
    except Exception as error:  # every store has errors of its own
        message = f"{redact_url(frames)}/{name} cannot be read ({error}). The same command again goes on from here."
        raise RunError(message) from error


def _frames_of(
    video: Path, name: str, folder: str, given: set[str], work: Path, frame_interval: float | None
) -> list[dict[str, Any]]:
    """Take the frames out of a video: the first at or after each multiple of `frame_interval` seconds.

    Args:
        video: The file.
        name: What it is called where it was fetched from.
        folder: Of its frames, which is their recording too.
        given: Names that files of this fetch have; those of the frames are added.
        work: Directory of the fetch.
        frame_interval: In seconds; all frames where `None`.
    """
    capture = cv2.VideoCapture(str(video))
    images: list[dict[str, Any]] = []
    due = 0.0
    while capture.isOpened() and capture.grab():
        seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if frame_interval is not None and seconds < due - 1e-6:
            continue
        due = (seconds // frame_interval + 1) * frame_interval if frame_interval is not None else 0.0
        good, pixels = capture.retrieve()
        if not good:
            continue
        file_name = _free(f"{folder}/{round(1000 * seconds):09d}", given)
        given.add(file_name)
        if not (work / "images" / file_name).is_file():
            encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
            with atomic_write(work / "images" / file_name, "wb") as file:
                file.write(encoded.tobytes())
        images.append(_image(work / "images" / file_name, file_name, folder, round(seconds, 6)))
    capture.release()
    if not images:
        message = f"{name} holds no frame that can be decoded. Is it whole?"
        raise DataError(message)
    return images


def _free(stem: str, given: set[str]) -> str:
    """Return the name of a frame that no other has: a video may hold two frames of one millisecond."""
    name, number = f"{stem}.jpg", 2
    while name in given:
        name, number = f"{stem}-{number}.jpg", number + 1
    return name


def _image(path: Path, name: str, recording: str, seconds: float | None) -> dict[str, Any]:
    whole = read_picture(path)  # as it is stored: the reader applies no EXIF orientation either
    # A broken image is kept: whoever reads it puts it into quarantine, and drift counts it as a fault.
    height, width = (1, 1) if whole is None else (int(side) for side in whole.shape[:2])
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
