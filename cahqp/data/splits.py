"""Check that held-out frames are not also trained on.

Neighbouring frames of a fixed camera are nearly the same image, so a random split would measure memory.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from cahqp.errors import DataError
from cahqp.files import sha256
from cahqp.frame import Frame

Located = tuple[Frame, Path | None]
"""A frame and its image file, if it has one."""

_NAMING = (
    "The name of a recording is an image's `recording`, by default its `camera`, else the folder in its `file_name`. "
    "Give different recordings different names."
)
_log = logging.getLogger(__name__)


def recording_of(frame: Frame) -> str:
    """Return the recording of a frame, by default its camera."""
    return frame.recording or frame.camera


def check_leakage(train: Sequence[Located], held_out: Sequence[Located], later_block: bool = False) -> None:
    """Refuse held-out frames that are, or are next to, training frames.

    Args:
        train: Training frames.
        held_out: Held-out frames.
        later_block: Allow a recording on both sides if all its held-out frames come after all its training frames.

    Raises:
        DataError: A recording is on both sides in any other way, or an image is.
    """
    _check_recordings([f for f, _ in train], [f for f, _ in held_out], later_block)
    same = _same_images(train, held_out)
    if same:
        lines = [f"  {held} is {trained}" for held, trained in same[:10]]
        head = f"{len(same)} held-out images are also training images:"
        raise DataError("\n".join([head, *lines, "Remove them from one of the two sides."]))


def _check_recordings(train: list[Frame], held_out: list[Frame], later_block: bool) -> None:
    last = {name: max(indices) for name, indices in _indices(train).items()}
    first = {name: min(indices) for name, indices in _indices(held_out).items()}
    if "" in last or "" in first:
        _log.warning("Some frames name no recording and no camera: held-out frames may be neighbours of training ones.")
    shared = sorted((last.keys() & first.keys()) - {""})
    if later_block:
        shared = [name for name in shared if first[name] <= last[name]]
    if not shared:
        return
    lines = [
        f"  {name}: trained on up to frame {last[name]}, held out from frame {first[name]}" for name in shared[:10]
    ]
    head = f"{len(shared)} recordings are both trained on and held out:"
    remedy = (
        "Held-out frames must come after all others; `frame` numbers in the files define the order."
        if later_block
        else "Hold out whole recordings or, if the held-out frames are a later block, set `later_block: true`."
    )
    raise DataError("\n".join([head, *lines, remedy, _NAMING]))


def _indices(frames: list[Frame]) -> dict[str, list[int]]:
    indices: dict[str, list[int]] = defaultdict(list)
    for frame in frames:
        indices[recording_of(frame)].append(frame.index)
    return indices


def _same_images(train: Sequence[Located], held_out: Sequence[Located]) -> list[tuple[Path, Path]]:
    """Return pairs of held-out and training files with the same bytes. Only files of equal length are read."""
    sizes: dict[int, list[Path]] = defaultdict(list)
    for _, path in train:
        if path is not None:
            sizes[path.stat().st_size].append(path)
    hashes: dict[Path, str] = {}
    pairs = []
    for _, path in held_out:
        for other in sizes.get(path.stat().st_size, []) if path is not None else []:
            if path is not None and _hash(path, hashes) == _hash(other, hashes):
                pairs.append((path, other))
                break
    return pairs


def _hash(path: Path, hashes: dict[Path, str]) -> str:
    if path not in hashes:
        hashes[path] = sha256(path)
    return hashes[path]
