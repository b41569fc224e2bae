"""Download of a published checkpoint: resumable, with its SHA-256 checked or pinned."""

from __future__ import annotations

import http.client
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from cahqp.errors import WeightsError
from cahqp.files import atomic_write, read_json, sha256, write_json, writing

PINS = "checkpoints.json"
"""File beside the downloads: URL and SHA-256 of each one by file name."""

_TIMEOUT = 60.0
_RANGE_NOT_SATISFIABLE = 416


def download(url: str, folder: Path, expected: str | None = None) -> Path:
    """Download a file, unless it is there already, and check its SHA-256.

    An interrupted download resumes. Without an expected hash, the first download is trusted and its hash is recorded in
    `checkpoints.json`; later uses of the folder must match it.

    Args:
        url: Address of the file.
        folder: Folder of the file.
        expected: Hexadecimal SHA-256 from the publisher; `None` if unknown.

    Returns:
        Path of the file.

    Raises:
        WeightsError: The file cannot be downloaded, or has another hash.
        RunError: The disk is full, or the folder cannot be written.
    """
    path = folder / url.rpartition("/")[2]
    pins = read_json(folder / PINS) if (folder / PINS).is_file() else {}
    if not path.is_file():
        _fetch(url, path)
    digest = sha256(path)
    wanted = expected or pins.get(path.name, {}).get("sha256", digest)
    if digest != wanted:
        origin = "published" if expected else "recorded at the first download"
        message = (
            f"{path} has the SHA-256 {digest}, not {wanted}, which was {origin}. Remove the file and rerun the same "
            "command; if the hash differs again, do not use the file."
        )
        raise WeightsError(message)
    pins[path.name] = {"url": url, "sha256": digest, "trusted": "published hash" if expected else "first download"}
    write_json(folder / PINS, pins)
    return path


def _fetch(url: str, path: Path) -> None:
    """Download into `<path>.part`, from where an earlier attempt ended, and rename it."""
    part, tag = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.etag")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _append(url, part, tag)
        except (OSError, http.client.HTTPException) as error:
            if not isinstance(
                error, urllib.error.URLError | http.client.HTTPException | ConnectionError | TimeoutError
            ):
                raise  # the disk
            message = (
                f"{url} could not be downloaded ({error}). Rerun the same command to resume, or download it by other "
                "means and give the file instead of the name."
            )
            raise WeightsError(message) from error
        part.rename(path)
        tag.unlink(missing_ok=True)


def _append(url: str, part: Path, tag: Path) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "cahqp"})
    if have and tag.is_file():
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag.read_text(encoding="utf-8"))  # a changed file is sent whole
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == _RANGE_NOT_SATISFIABLE:  # the part is complete, or longer than the file
            part.unlink()
            _append(url, part, tag)
            return
        raise
    with response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        if (etag := response.headers.get("ETag")) and not resumed:
            with atomic_write(tag) as file:
                file.write(etag)
        size = int(response.headers.get("Content-Length", -1))
        with part.open("ab" if resumed else "wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
        written = part.stat().st_size - (have if resumed else 0)
        if size >= 0 and written != size:
            message = f"{written} of {size} bytes arrived"
            raise ConnectionError(message)
