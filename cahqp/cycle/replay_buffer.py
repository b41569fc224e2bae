"""`cahqp replay`: a bounded buffer of past domains, so that a student that learns fog does not forget the night.

After ER-EMU (arXiv 2507.00042): a first-in-first-out buffer of limited size, filled by simple random sampling, of which
the domains most unlike the current one, by MK-MMD, are replayed. What was published leaves open how many frames, how
many domains and what is held out; those are settings here.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.coco.document import read_document
from cahqp.coco.image_folder import image_root
from cahqp.coco.subset import build_document, camera_of, copy_file, recording_of
from cahqp.drift.mmd import distance, fit_scale
from cahqp.drift.signals import Signals, read_signals, same_model, write_signals
from cahqp.errors import ConfigError, DataError, check_numbers
from cahqp.files import read_json, write_json
from cahqp.runs.directory import RunDirectory

NEW = Path("new/labels.json")
PAST = Path("past.json")
BUFFER = "buffer.json"

_FEWEST = 2  # frames that a domain needs to be one
_PART_FOR_NEW = 0.5  # the newest domain may not push more than this share of the others out at once


@dataclass(frozen=True)
class Domain:
    """Frames of one past domain in the buffer.

    Attributes:
        name: Of the domain, numbered where the buffer has older frames of it.
        domain: Its plain name.
        directory: Where its labels, images and features lie.
        frames: How many of them.
        held: How many of them are held out for the gate.
    """

    name: str
    domain: str
    directory: Path
    frames: int
    held: int


def replay(
    labels: Path,
    features: Path,
    name: str,
    output: Path,
    buffer: Path | None = None,
    capacity: int = 400,
    share: float = 0.25,
    select: int = 2,
    hold_out: float = 0.2,
    seed: int = 0,
) -> None:
    """Add a domain to the buffer of past ones, and choose what the student replays while it learns the new one.

    Writes `new/labels.json` (the new frames to train on, without those held out), `past.json` (the frames to replay),
    and of each domain in the buffer `NAME/train.json`, `NAME/held.json` and its features. `buffer.json` lists them,
    oldest first, with their distances.

    Args:
        labels: What `cahqp relabel` wrote for the new domain.
        features: Of the same frames, by the model of all features in the buffer.
        name: Of the new domain. A domain of that name in the buffer is kept beside it, as an older one.
        output: Directory to make.
        buffer: The directory that the round before has made. Default none: the buffer is empty.
        capacity: Most frames of the buffer; the oldest go first.
        share: Of the capacity, 0..1, that the new domain takes, drawn at random.
        select: Past domains to replay: the most unlike the new one. All where there are no more.
        hold_out: Share of each recording's frames, its last ones, that are never trained on but judged on.
        seed: Of the draws.
    """
    check_numbers(shares={"--share": share, "--hold_out": hold_out}, counts={"--capacity": capacity})
    if "/" in name or name.startswith(".") or name in ("new", ""):
        message = f"--name must be a plain name other than `new`, got {name!r}."
        raise ConfigError(message)
    settings = {"name": name, "capacity": capacity, "share": share, "select": select, "hold_out": hold_out}
    inputs = {"labels": labels, "features": features} | ({"buffer": buffer} if buffer else {})
    run = RunDirectory(output, "replay", settings, inputs, seed)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    document, signals = read_document(labels, ["images"]), read_signals(features)
    past = read_buffer(buffer) if buffer else []
    held = held_out(document["images"], hold_out)
    distances = {domain.name: _distance(domain, signals) for domain in past}
    _write_new(run.work, document, labels, held)
    random = np.random.default_rng(seed)
    taken = _take(
        document, labels, signals, held, max(1, round(share * capacity)), random, run.work / _free(name, past)
    )
    room = capacity - len(taken)
    kept = _keep(past, room, run.work)
    chosen = sorted((domain.name for domain in kept), key=lambda name: -distances[name])[: max(select, 0)]
    _write_past(run.work, [domain for domain in kept if domain.name in chosen])
    own = _free(name, past)
    listed = [*kept, Domain(own, name, run.work / own, len(taken), len(held & set(taken)))]
    entries = [{"name": d.name, "domain": d.domain, "frames": d.frames, "held": d.held} for d in listed]
    told = {"domains": entries, "distances": {n: round(d, 6) for n, d in distances.items()}, "replayed": chosen}
    write_json(run.work / BUFFER, told)
    run.finish({"frames": sum(d.frames for d in listed), "domains": len(listed)})
    print(f"{output}: {', '.join(f'{d.name} {d.frames}' for d in listed)}; replayed: {', '.join(chosen) or 'none'}.")


def read_buffer(directory: Path) -> list[Domain]:
    """Return the domains of a buffer, oldest first.

    Raises:
        DataError: It is no buffer.
    """
    if not (directory / BUFFER).is_file():
        message = f"{directory} is no buffer: it has no {BUFFER}. Give what `cahqp replay` made."
        raise DataError(message)
    listed = read_json(directory / BUFFER)["domains"]
    return [
        Domain(entry["name"], entry["domain"], directory / entry["name"], entry["frames"], entry["held"])
        for entry in listed
    ]


def held_out(images: list[dict[str, Any]], share: float) -> set[int]:
    """Return ids of the last frames of each recording: neighbouring frames are nearly one picture, a draw would leak.

    Args:
        images: COCO images.
        share: Of each recording, 0..1; a recording of one frame is trained on.
    """
    recordings: dict[str, list[dict[str, Any]]] = {}
    for image in images:
        recordings.setdefault(f"{camera_of(image)}/{recording_of(image)}", []).append(image)
    held: set[int] = set()
    for frames in recordings.values():
        frames.sort(key=lambda image: (image.get("frame", 0), image["id"]))
        count = min(math.ceil(share * len(frames)), len(frames) - 1)
        held |= {image["id"] for image in frames[len(frames) - count :]}
    return held


def _free(name: str, past: list[Domain]) -> str:
    """Return the name, numbered where an older domain of the buffer has it."""
    taken = {domain.name for domain in past}
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}.{number}", number + 1
    return free


def _distance(domain: Domain, signals: Signals) -> float:
    old = read_signals(domain.directory)
    if not same_model(old, signals):
        message = f"The buffer's {domain.name} has features of another model. Begin the buffer anew, without --buffer."
        raise DataError(message)
    now = signals.features[signals.readable]
    if min(len(old), len(now)) < _FEWEST:
        return 0.0  # of one frame nobody can say how far it is from the next
    return distance(old.features, now, fit_scale(old.features))


def _write_new(work: Path, document: dict[str, Any], labels: Path, held: set[int]) -> None:
    """Write the new domain's frames to train on; their images stay where they are."""
    images = [image for image in document["images"] if image["id"] not in held]
    boxes = [box for box in document.get("annotations", []) if box["image_id"] not in held]
    (work / NEW).parent.mkdir(exist_ok=True)
    root = os.path.relpath(image_root(labels).resolve(), (work / NEW).parent.resolve())
    write_json((work / NEW).parent / "source.json", {"root": Path(root).as_posix()})
    write_json(work / NEW, build_document(images, boxes, document.get("categories", [])))


def _take(
    document: dict[str, Any],
    labels: Path,
    signals: Signals,
    held: set[int],
    most: int,
    random: np.random.Generator,
    directory: Path,
) -> list[int]:
    """Put a random sample of the new domain into the buffer: simple random sampling, held-out frames in proportion.

    Returns:
        Image ids of the sample.
    """
    rows = {name: row for row, name in enumerate(signals.names)}
    root = image_root(labels)
    known = [image for image in document["images"] if _row(image, rows, signals) is not None]
    if not known:
        message = f"None of the frames in {labels} has features. Make them of the same frames."
        raise DataError(message)
    parts = ([i for i in known if i["id"] not in held], [i for i in known if i["id"] in held])
    counts = (most - round(most * len(parts[1]) / len(known)), round(most * len(parts[1]) / len(known)))
    drawn = [image for part, count in zip(parts, counts, strict=True) for image in _draw(part, count, random)]
    images = []
    for number, image in enumerate(drawn, 1):
        name = f"images/{number:05d}{Path(image['file_name']).suffix}"
        copy_file(root / image["file_name"], directory / name)
        images.append({**image, "file_name": name})
    _write_domain(directory, images, document.get("annotations", []), document.get("categories", []), held)
    write_signals(directory, signals.take([_row(image, rows, signals) or 0 for image in drawn]), None)
    return [image["id"] for image in drawn]


def _row(image: dict[str, Any], rows: dict[str, int], signals: Signals) -> int | None:
    """Return an image's row among the features; names may begin at different folders."""
    name = str(image["file_name"])
    if name in rows:
        return rows[name]
    return next((row for known, row in rows.items() if known.endswith(f"/{name}") or name.endswith(f"/{known}")), None)


def _draw(images: list[dict[str, Any]], count: int, random: np.random.Generator) -> list[dict[str, Any]]:
    rows: NDArray[np.int64] = random.permutation(len(images))[:count]
    return [images[row] for row in sorted(rows)]


def _write_domain(
    directory: Path, images: list[dict[str, Any]], boxes: list[dict[str, Any]], categories: list[Any], held: set[int]
) -> None:
    # Names begin at the domain's directory, so `images/` beside the file must not be taken for their root.
    write_json(directory / "source.json", {"root": "."})
    for name, part in (
        ("train.json", [i for i in images if i["id"] not in held]),
        ("held.json", [i for i in images if i["id"] in held]),
    ):
        write_json(directory / name, build_document(part, boxes, categories))


def _keep(past: list[Domain], room: int, work: Path) -> list[Domain]:
    """Carry the newest frames of the past over, as many as there is room for; the oldest domains go first."""
    kept: list[Domain] = []
    for domain in reversed(past):
        count = min(domain.frames, room)
        if count < _FEWEST:
            break
        room -= count
        kept.append(_carry(domain, count, work))
    return kept[::-1]


def _carry(domain: Domain, count: int, work: Path) -> Domain:
    """Carry a domain over, its first `count` frames at most, held-out ones in proportion."""
    directory = work / domain.name
    held_count = min(domain.held, round(count * domain.held / domain.frames))
    sizes = {"train.json": count - held_count, "held.json": held_count}
    rows: list[int] = []
    before = 0
    for file, size in sizes.items():
        document = read_document(domain.directory / file, ["images"])
        images = document["images"][:size]
        for image in images:
            copy_file(domain.directory / image["file_name"], directory / image["file_name"], link=True)
        rows += range(before, before + len(images))  # features stand in the order of the files
        before += len(document["images"])
        write_json(directory / file, build_document(images, document["annotations"], document["categories"]))
    write_json(directory / "source.json", {"root": "."})
    write_signals(directory, read_signals(domain.directory).take(rows), None)
    return Domain(domain.name, domain.domain, directory, count, held_count)


def _write_past(work: Path, domains: list[Domain]) -> None:
    """Write the frames to replay as one file, whose names begin at the buffer's directory."""
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    categories: list[Any] = []
    for domain in domains:
        document = read_document(domain.directory / "train.json", ["images"])
        categories = categories or document["categories"]
        start = len(images)
        images += [
            {**image, "id": start + image["id"], "file_name": f"{domain.name}/{image['file_name']}"}
            for image in document["images"]
        ]
        boxes += [{**box, "image_id": start + box["image_id"]} for box in document["annotations"]]
    write_json(work / PAST, build_document(images, boxes, categories))
