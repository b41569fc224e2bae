"""Files of a folder or a store: listed, and copied one by one."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from cahqp.coco.sources import is_image, is_video, report_left_out
from cahqp.coco.subset import copy_file
from cahqp.errors import CahqpError, ConfigError, DataError, RunError
from cahqp.files import atomic_write, leads_out, natural_key, redact_text, redact_url

_MAX_NAME = 240  # bytes; a temporary file beside the copy has a longer name


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
    unusable = {file.name for file in kept if not is_usable(file.name) or file.name in folders}
    usable = sorted((file for file in kept if file.name not in unusable), key=lambda file: natural_key(file.name))
    return usable, sorted(ascii(name) for name in unusable)


def is_usable(name: str) -> bool:
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


def copy_from(frames: str, name: str, local: Path) -> None:
    """Copy a file of a folder or a URL to a path."""
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
