"""`cahqp fetch`: copy frames from a folder or a URL into a directory, each of them once."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field

from cahqp.coco.sources import SUFFIXES, is_image
from cahqp.coco.subset import Image, build_document
from cahqp.cycle.fetch.options import FetchOptions
from cahqp.cycle.fetch.recording import Recording
from cahqp.cycle.fetch.stores import RemoteFile, copy_from, is_usable, list_files
from cahqp.cycle.fetch.videos import extract_frames, image_entry, set_origin, video_folders
from cahqp.errors import DataError
from cahqp.files import natural_key, redact_url, write_json
from cahqp.records import FileName, Record, Text, read_record
from cahqp.runs.directory import RunDirectory, open_run

TAKEN = "taken.json"
"""List of the files that a fetch copies, written before it starts."""

_MAX_LISTED = 10  # names of failed files in messages


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
    inputs = {f"after.{number}": path for number, path in enumerate(options.after)}
    with open_run(options.output, "fetch", _settings(options), inputs, resumable=True) as run:
        if run is None:
            return
        if options.live:
            _record(options, run)
        else:
            _fetch_files(options, run)


def _settings(options: FetchOptions) -> dict[str, Any]:
    """Return the settings that decide the result, without user and password."""
    shown = redact_url(options.frames)
    settings = {"frame_interval": options.frame_interval, "limit": options.limit}
    if not options.live:
        return {"frames": PurePosixPath(shown).name, **settings, **options.naming_settings}
    names = ("until", "when", "max_megabytes", "when_full", "camera")
    return {"frames": shown, **settings, **{name: getattr(options, name) for name in names}}


def _record(options: FetchOptions, run: RunDirectory) -> None:
    recording = Recording(options, run.work)
    reason = recording.record()
    if not recording.images:
        shutil.rmtree(run.work / "checkpoints")
        message = f"{redact_url(options.frames)} gave no frame ({recording.summary(reason)})."
        raise DataError(message)
    _write_frames(run, list(recording.images))
    write_json(run.work / TAKEN, {"files": {}})
    shutil.rmtree(run.work / "checkpoints")
    run.metrics = {"frames": len(recording.images), "received": recording.received, "broken": recording.broken}
    print(f"{options.output}: {recording.summary(reason)}")


def _write_frames(run: RunDirectory, images: list[Image]) -> None:
    for number, image in enumerate(images, 1):
        image["id"] = number
    write_json(run.work / "frames.json", build_document(images, [], []))


def _fetch_files(options: FetchOptions, run: RunDirectory) -> None:
    shown = redact_url(options.frames)
    # The folder may grow while files are copied: an interrupted fetch keeps its first list.
    listed = run.work / TAKEN
    if not listed.is_file():
        new, skipped = list_new(options.frames, options.after, options.end(0.0), report=True)
        if not new:
            message = f"{shown} has no new image or video. Allowed are {SUFFIXES}."
            raise DataError(message)
        chosen = new[: options.limit]
        if options.naming is not None:
            options.naming.check_names([file.name for file in chosen], shown)
        write_json(listed, {"files": {file.name: file.size for file in chosen}, "skipped": skipped})
        if len(chosen) < len(new):
            print(f"{len(new) - len(chosen)} of {len(new)} files are left for later (--limit {options.limit}).")
    taken = _read_taken(listed)
    names = sorted(taken.files, key=natural_key)  # JSON keys are sorted as text
    images, failures = _fetch_all(options, names, run.work)
    failures += [f"Skipped: {name} is not a portable file name. Rename it." for name in taken.skipped]
    if not images:
        shutil.rmtree(run.work / "checkpoints", ignore_errors=True)
        listed.unlink()  # a rerun lists the folder again
        lines = [f"None of the {len(names)} files of {shown} gave a frame:", *failures[:_MAX_LISTED]]
        raise DataError("\n".join(lines))
    _write_frames(run, images)
    total = len(names) + len(taken.skipped)
    run.metrics = {"files": total, "frames": len(images), "lost": len(failures)}
    skipped_files = f" {len(failures)} files were skipped." if failures else ""
    total_line = f"{options.output}: {len(images)} frames of {total - len(failures)} files.{skipped_files}"
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
    outside = [name for name in taken.files if not is_usable(name)]
    if outside:
        message = f"{path} lists {outside[0]!a}, which is not a portable file name. Restore a copy."
        raise DataError(message)
    return taken


def _fetch_all(options: FetchOptions, names: list[str], work: Path) -> tuple[list[Image], list[str]]:
    """Return the images of the copied files, and a line for each file without a frame, which must not stop a fleet."""
    images: dict[str, list[Image]] = {}
    failures: list[str] = []
    folders, taken = video_folders(names), set(names)
    for name in names:
        local = _local(work, name)
        try:
            if not local.is_file():
                copy_from(options.frames, name, local)
            if name in folders:
                images[name] = extract_frames(local, folders[name], taken, work, options.frame_interval)
            else:
                images[name] = [image_entry(local, name, str(PurePosixPath(name).parent), None)]
        except (DataError, FileNotFoundError, PermissionError) as error:
            failures.append(f"Skipped: {error}")
    if options.naming is not None:
        stored = "://" in options.frames
        files = [_local(work, name) if stored else Path(options.frames) / name for name in images]
        origins = options.naming.origins(list(images), files, redact_url(options.frames))
        for own, origin in zip(images.values(), origins, strict=True):
            set_origin(own, origin)
    return [image for own in images.values() for image in own], failures


def _local(work: Path, name: str) -> Path:
    return work / ("images" if is_image(name) else "checkpoints/videos") / name
