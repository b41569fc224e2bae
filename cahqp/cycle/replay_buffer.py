"""`cahqp replay`: a bounded buffer of frames of past domains, against forgetting.

After ER-EMU (arXiv 2507.00042): a first-in-first-out buffer of limited size, filled by simple random sampling. The
domains with the largest MK-MMD to the current domain are replayed. The paper does not state the number of frames and
domains, nor what is held out; these are settings here.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from cahqp.coco.image_folder import image_root
from cahqp.coco.subset import Image, build_document, camera_of, copy_file, recording_of_image
from cahqp.coco.tables import read_checked
from cahqp.drift.mmd import distance, fit_scale
from cahqp.drift.signals import Signals, read_signals, same_model, write_signals
from cahqp.errors import ConfigError, DataError, check_numbers
from cahqp.files import path_inside, write_json
from cahqp.records import Name, Record, read_record
from cahqp.runs.directory import open_run

NEW = Path("new/labels.json")
PAST = Path("past.json")
BUFFER = "buffer.json"

_MIN_FRAMES = 2  # a distribution needs two frames


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """Settings of the replay buffer.

    Attributes:
        capacity: Largest number of frames in the buffer. The oldest frames are removed first.
        share: Share of the capacity, 0..1, for the new domain. Its frames are drawn at random.
        select: Number of past domains to replay, those most unlike the new domain.
        hold_out: Share of each recording's frames, 0..1, that is held out from training for the gate: the last ones.
    """

    capacity: int = 400
    share: float = 0.25
    select: int = 2
    hold_out: float = 0.2

    def __post_init__(self) -> None:
        check_numbers({"--share": self.share, "--hold-out": self.hold_out}, {"--capacity": self.capacity})


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(ReplaySettings):
    """Add a domain to the buffer of past domains, and select the frames to replay while training on the new domain.

    Writes `new/labels.json` (new frames to train on), `past.json` (frames to replay), and for each domain in the buffer
    `NAME/train.json`, `NAME/held.json` and its features. `buffer.json` lists the domains, oldest first, with their
    distances.

    Attributes:
        labels: Labels of the new domain, written by `cahqp relabel`.
        features: Features of the same frames, by the model of all features in the buffer.
        name: Name of the new domain. Older frames of the same name stay in the buffer as another entry.
        output: New directory for the buffer.
        buffer: Replay buffer that the previous round wrote. Default: start with an empty buffer.
        seed: Seed of the random draws.
    """

    labels: Path
    features: Path
    name: str
    output: Path
    buffer: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if "/" in self.name or self.name.startswith(".") or self.name in ("new", ""):
            message = f"--name must be a plain name other than `new`, got {self.name!r}."
            raise ConfigError(message)


@dataclass(frozen=True)
class BufferDomain:
    """Frames of one past domain in the buffer.

    Attributes:
        name: Name of the domain, with a number if the buffer contains older frames of the same domain.
        domain: Name of the domain without the number.
        frames: Number of frames.
        held: Number of frames that are held out for the gate.
        directory: Directory of its labels, images and features.
    """

    name: str
    domain: str
    frames: int
    held: int
    directory: Path


class _DomainRecord(Record):
    name: Name
    domain: Name
    frames: Annotated[int, Field(ge=1, le=1 << 31)]
    held: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _check_held(self) -> Self:
        if self.held >= self.frames:
            message = f"{self.held} of {self.frames} frames are held out"
            raise ValueError(message)
        return self


class _BufferRecord(Record):
    """Content of `buffer.json`."""

    domains: list[_DomainRecord]


def replay(options: ReplayOptions) -> None:
    """Run `cahqp replay`."""
    names = ("name", "capacity", "share", "select", "hold_out")
    inputs = {"labels": options.labels, "features": options.features}
    inputs |= {"buffer": options.buffer} if options.buffer else {}
    settings = {name: getattr(options, name) for name in names}
    with open_run(options.output, "replay", settings, inputs, options.seed) as run:
        if run is None:
            return
        past = read_buffer(options.buffer) if options.buffer else []
        domains, distances = _update(options, past, run.work)
        by_distance = sorted((domain.name for domain in domains[:-1]), key=lambda name: -distances[name])
        replayed = by_distance[: max(options.select, 0)]
        _write_past(run.work, [domain for domain in domains if domain.name in replayed])
        entries = [{"name": d.name, "domain": d.domain, "frames": d.frames, "held": d.held} for d in domains]
        rounded = {name: round(value, 6) for name, value in distances.items()}
        write_json(run.work / BUFFER, {"domains": entries, "distances": rounded, "replayed": replayed})
        run.metrics = {"frames": sum(d.frames for d in domains), "domains": len(domains)}
        counts = ", ".join(f"{d.name} {d.frames}" for d in domains)
        print(f"{options.output}: {counts}; replayed: {', '.join(replayed) or 'none'}.")


def read_buffer(directory: Path) -> list[BufferDomain]:
    """Return the domains of a buffer, oldest first.

    Raises:
        DataError: The directory is not a buffer.
    """
    if not (directory / BUFFER).is_file():
        message = f"{directory} is not a buffer: {BUFFER} is missing. Give a directory that `cahqp replay` wrote."
        raise DataError(message)
    remedy = "Give a directory that `cahqp replay` wrote."
    domains = read_record(directory / BUFFER, _BufferRecord, remedy, DataError).domains
    return [BufferDomain(d.name, d.domain, d.frames, d.held, path_inside(directory, d.name)) for d in domains]


def held_out(images: list[Image], share: float) -> set[int]:
    """Return the ids of the last frames of each recording. Random frames would leak: neighbours are nearly equal.

    Args:
        images: COCO images.
        share: Share of each recording, 0..1. A recording of one frame is used for training.
    """
    recordings: dict[str, list[Image]] = {}
    for image in images:
        recordings.setdefault(f"{camera_of(image)}/{recording_of_image(image)}", []).append(image)
    held: set[int] = set()
    for frames in recordings.values():
        frames.sort(key=lambda image: (image.get("frame", 0), image["id"]))
        count = min(math.ceil(share * len(frames)), len(frames) - 1)
        held |= {image["id"] for image in frames[len(frames) - count :]}
    return held


def free_name(name: str, taken: set[str]) -> str:
    """Return the name, with a number if it is taken."""
    free, number = name, 2
    while free in taken:
        free, number = f"{name}.{number}", number + 1
    return free


def _update(
    options: ReplayOptions, past: list[BufferDomain], work: Path
) -> tuple[list[BufferDomain], dict[str, float]]:
    """Write the new domain and the kept past domains.

    Returns:
        The domains, oldest first, the new one last, and the distances of all past domains to the new one.
    """
    document, signals = read_checked(options.labels), read_signals(options.features)
    held = held_out(document["images"], options.hold_out)
    distances = {domain.name: _distance(domain, signals) for domain in past}
    _write_new(work, document, options.labels, held)
    name = free_name(options.name, {domain.name for domain in past})
    images = _draw(document, options, signals, held)
    _write_domain(work / name, document, options.labels, images, held)
    rows = _feature_rows(images, signals)
    write_signals(work / name, signals.take([rows[image["id"]] for image in images]), None)
    kept = _keep(past, options.capacity - len(images), work)
    held_count = len(held & {image["id"] for image in images})
    return [*kept, BufferDomain(name, options.name, len(images), held_count, work / name)], distances


def _distance(domain: BufferDomain, signals: Signals) -> float:
    old = read_signals(domain.directory)
    if not same_model(old, signals):
        message = f"The buffer's {domain.name} has features of another model. Start a new buffer, without --buffer."
        raise DataError(message)
    now = signals.features[signals.readable]
    if min(len(old), len(now)) < _MIN_FRAMES:
        return 0.0
    return distance(old.features, now, fit_scale(old.features))


def _write_new(work: Path, document: dict[str, Any], labels: Path, held: set[int]) -> None:
    """Write the training frames of the new domain. Their images stay where they are."""
    images = [image for image in document["images"] if image["id"] not in held]
    path = work / NEW
    path.parent.mkdir(exist_ok=True)
    root = os.path.relpath(image_root(labels).resolve(), path.parent.resolve())
    write_json(path.parent / "source.json", {"root": Path(root).as_posix()})
    annotations, categories = document.get("annotations", []), document.get("categories", [])
    write_json(path, build_document(images, annotations, categories))


def _feature_rows(images: list[Image], signals: Signals) -> dict[int, int]:
    """Return the row of the features of each image, by image id; file names may start at different folders."""
    rows = {name: row for row, name in enumerate(signals.names)}
    found = {}
    for image in images:
        name = str(image["file_name"])
        suffixes = (row for key, row in rows.items() if key.endswith(f"/{name}") or name.endswith(f"/{key}"))
        row = rows[name] if name in rows else next(suffixes, None)
        if row is not None:
            found[image["id"]] = row
    return found


def _draw(document: dict[str, Any], options: ReplayOptions, signals: Signals, held: set[int]) -> list[Image]:
    """Return a simple random sample of the new domain, with held-out frames in proportion."""
    rows = _feature_rows(document["images"], signals)
    usable = [image for image in document["images"] if image["id"] in rows]
    if not usable:
        message = f"None of the frames in {options.labels} has features. Run `cahqp features` on the same frames."
        raise DataError(message)
    random = np.random.default_rng(options.seed)
    size = max(1, round(options.share * options.capacity))
    parts = ([i for i in usable if i["id"] not in held], [i for i in usable if i["id"] in held])
    held_size = round(size * len(parts[1]) / len(usable))
    drawn = []
    for part, count in zip(parts, (size - held_size, held_size), strict=True):
        drawn += [part[row] for row in sorted(random.permutation(len(part))[:count])]
    return drawn


def _write_domain(
    directory: Path, document: dict[str, Any], labels: Path, images: list[Image], held: set[int]
) -> None:  # fmt: skip
    copies = []
    for number, image in enumerate(images, 1):
        name = f"images/{number:05d}{Path(image['file_name']).suffix}"
        copy_file(path_inside(image_root(labels), str(image["file_name"])), directory / name)
        copies.append({**image, "file_name": name})
    # File names start at the domain's directory, not at `images/` beside the file.
    write_json(directory / "source.json", {"root": "."})
    annotations, categories = document.get("annotations", []), document.get("categories", [])
    for name, is_held in (("train.json", False), ("held.json", True)):
        part = [image for image in copies if (image["id"] in held) is is_held]
        write_json(directory / name, build_document(part, annotations, categories))


def _keep(past: list[BufferDomain], room: int, work: Path) -> list[BufferDomain]:
    """Copy the newest past domains into `work`, as many frames as there is room for; drop the oldest domains."""
    kept: list[BufferDomain] = []
    for domain in reversed(past):
        count = min(domain.frames, room)
        if count < _MIN_FRAMES:
            break
        room -= count
        kept.append(_copy_domain(domain, count, work))
    return kept[::-1]


def _copy_domain(domain: BufferDomain, count: int, work: Path) -> BufferDomain:
    """Copy the first `count` frames of a domain, with held-out frames in proportion."""
    directory = work / domain.name
    held_count = min(domain.held, round(count * domain.held / domain.frames))
    rows: list[int] = []
    start = 0
    for file, size in (("train.json", count - held_count), ("held.json", held_count)):
        document = read_checked(domain.directory / file)
        images = document["images"][:size]
        for image in images:
            name = str(image["file_name"])
            copy_file(path_inside(domain.directory, name), path_inside(directory, name), link=True)
        rows += range(start, start + len(images))  # features are in the order of the files
        start += len(document["images"])
        write_json(directory / file, build_document(images, document["annotations"], document["categories"]))
    write_json(directory / "source.json", {"root": "."})
    write_signals(directory, read_signals(domain.directory).take(rows), None)
    return replace(domain, directory=directory, frames=count, held=held_count)


def _write_past(work: Path, domains: list[BufferDomain]) -> None:
    """Write the frames to replay as one file. File names start at the buffer's directory."""
    images: list[Image] = []
    boxes: list[dict[str, Any]] = []
    categories: list[Any] = []
    for domain in domains:
        document = read_checked(domain.directory / "train.json")
        categories = categories or document["categories"]
        start = len(images)
        images += [
            {**image, "id": start + image["id"], "file_name": f"{domain.name}/{image['file_name']}"}
            for image in document["images"]
        ]
        boxes += [{**box, "image_id": start + box["image_id"]} for box in document["annotations"]]
    write_json(work / PAST, build_document(images, boxes, categories))
