"""Soft-label store: the teacher's soft labels of M views of every frame, computed once and read in every epoch.

This adapts FDBPL's region information lookup (arXiv 2505.18053) to detection. A store is a folder of memory-mapped
shards of records of fixed size, ordered by frame, then view. `store.json` describes them, and is completed last.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cahqp.errors import DataError, RunError, WeightsError
from cahqp.files import path_inside, sync_directory, write_json
from cahqp.frame import Frame
from cahqp.records import FileName, Name, Record, Text, read_record
from cahqp.training.distillation.records import Precision, RecordLayout, Rest, SoftView, checksum, pack, unpack

FORMAT = 1
INDEX = "store.json"
_MAGIC = b"cahqpsoft"
_HEADER = 64  # bytes before a shard's first record: the magic and the store's key
_MAX_INDEX_BYTES = 1 << 30  # of `store.json`: about five million frames
_SHARD = 32 << 20  # bytes of a shard: small enough to resume a copy, large enough to list the shards


@dataclass(frozen=True)
class StoreKey:
    """Conditions of the soft labels. Stores with the same key and frames are equal.

    Attributes:
        teacher: Content hash of the teacher's model file, including its prompts.
        prompt: Hash of the weights of its prompts; `None` without prompts.
        classes: Class names of the teacher.
        views: Number of views of each frame.
        seed: Seed of the views.
        augmentation: Strength of the augmentation.
        layout: Layout of the records.
    """

    teacher: str
    prompt: str | None
    classes: tuple[str, ...]
    views: int
    seed: int
    augmentation: str
    layout: RecordLayout

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key, in the header of every shard."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()


class _LayoutRecord(Record):
    queries: Annotated[int, Field(ge=1, le=10_000)]
    kept: Annotated[int, Field(ge=1)]
    classes: Annotated[int, Field(ge=1, le=10_000)]
    precision: Precision

    @model_validator(mode="after")
    def _check_kept(self) -> Self:
        if self.kept > self.classes:
            message = f"{self.kept} of {self.classes} classes are kept"
            raise ValueError(message)
        return self


class _KeyRecord(Record):
    teacher: Name
    prompt: Name | None
    classes: list[Name]
    views: Annotated[int, Field(ge=1, le=10_000)]
    seed: Annotated[int, Field(ge=0, lt=1 << 64)]
    augmentation: Name
    layout: _LayoutRecord

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        if len(self.classes) != self.layout.classes:
            message = f"{len(self.classes)} classes are named, the layout has {self.layout.classes}"
            raise ValueError(message)
        return self

    def key(self) -> StoreKey:
        """Return the key of the store."""
        names = ("queries", "kept", "classes", "precision")
        layout = RecordLayout(**{name: getattr(self.layout, name) for name in names})
        return StoreKey(
            self.teacher, self.prompt, tuple(self.classes), self.views, self.seed, self.augmentation, layout
        )  # fmt: skip


class _StoreRecord(Record):
    """Content of `store.json`; a frame is its name, camera, recording and index."""

    format: int
    complete: bool
    key: _KeyRecord
    root: Text
    frames: list[Annotated[tuple[FileName, Text, Text, int], Field(strict=False)]]
    missing: list[int] = Field(default_factory=list)


def _read_index(path: Path) -> _StoreRecord:
    return read_record(path, _StoreRecord, "Make the store again.", DataError, _MAX_INDEX_BYTES)


@dataclass
class StoreShards:
    """Shards of a store, mapped into memory at first use.

    Attributes:
        folder: Folder of the store.
        key: Conditions of the soft labels.
        frames: Number of frames.
        writable: Create missing shards.
    """

    folder: Path
    key: StoreKey
    frames: int
    writable: bool = False
    _maps: dict[int, NDArray[np.void]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Compute the number of records of a shard."""
        self.per_shard = max(1, _SHARD // self.key.layout.dtype.itemsize)

    def __len__(self) -> int:
        """Return the number of records."""
        return self.frames * self.key.views

    def record(self, number: int) -> NDArray[np.void]:
        """Return the record, (1,), with this number, mapped to its file."""
        shard, place = divmod(number, self.per_shard)
        if shard not in self._maps:
            self._maps[shard] = self._open(shard)
        return self._maps[shard][place : place + 1]

    def _open(self, shard: int) -> NDArray[np.void]:
        path = self.folder / f"shard-{shard:05d}.bin"
        records = min(self.per_shard, len(self) - shard * self.per_shard)
        size = _HEADER + records * self.key.layout.dtype.itemsize
        header = (_MAGIC + self.key.digest).ljust(_HEADER, b"\0")
        if self.writable:
            _create_shard(path, header, size)
        if not path.is_file() or path.stat().st_size != size:
            message = f"{path} is missing or has not the expected {size} bytes. Make the store again."
            raise DataError(message)
        with path.open("rb") as file:
            if file.read(_HEADER) != header:
                message = (
                    f"{path} belongs to another store: its teacher, prompts or settings differ from {INDEX}. "
                    "Use the folder as it was written, or make the store again."
                )
                raise DataError(message)
        mode: Any = "r+" if self.writable else "r"
        return np.memmap(path, self.key.layout.dtype, mode, offset=_HEADER, shape=(records,))

    def flush(self) -> None:
        """Write all data to the disk."""
        for mapped in self._maps.values():
            if isinstance(mapped, np.memmap):
                mapped.flush()
        sync_directory(self.folder)


def _create_shard(path: Path, header: bytes, size: int) -> None:
    """Create a missing shard, and allocate its space on the disk.

    Writing to a mapped file without allocated space kills the process when the disk is full.

    Raises:
        RunError: The disk is full.
    """
    partial = path.with_suffix(".partial")
    try:
        if not path.is_file():
            partial.write_bytes(header)
            _allocate(partial, size)
            partial.replace(path)
        elif path.stat().st_size == size:
            _allocate(path, size)
    except OSError as error:
        partial.unlink(missing_ok=True)
        message = (
            f"{path} could not be written ({error.strerror}). Free some space, then rerun the same command to resume."
        )
        raise RunError(message) from error


def _allocate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS, Windows
            file.truncate(size)


class SoftLabelWriter:
    """Writer of a store, in any order. An interrupted store is continued.

    Args:
        folder: Folder of the store; created if missing.
        key: Conditions of the soft labels.
        root: Folder of the images, relative to `folder`.
        frames: All frames; `name` is the image file below `root`.

    Raises:
        RunError: The folder contains a store with another key or other frames.
    """

    def __init__(self, folder: Path, key: StoreKey, root: str, frames: Sequence[Frame]) -> None:
        self.folder, self.key = Path(folder), key
        self.folder.mkdir(parents=True, exist_ok=True)
        self._document: dict[str, Any] = {
            "format": FORMAT,
            "key": json.loads(json.dumps(asdict(key))),
            "root": root,
            "frames": [[f.name, f.camera, f.recording, f.index] for f in frames],
        }
        index = self.folder / INDEX
        if not index.is_file():
            write_json(index, {**self._document, "complete": False})
        elif {k: v for k, v in _as_json(_read_index(index)).items() if k in self._document} != self._document:
            message = f"{self.folder} is a store of another teacher, other frames or settings. Choose another folder."
            raise RunError(message)
        self._shards = StoreShards(self.folder, key, len(frames), writable=True)

    def done(self) -> NDArray[np.bool_]:
        """Return (frames, views): whether a record is complete. Records of an interrupted write fail their checksum."""
        records = (self._shards.record(number) for number in range(len(self._shards)))
        complete = [bool(one["check"][0]) and int(one["check"][0]) == checksum(one) for one in records]
        return np.array(complete, np.bool_).reshape(-1, self.key.views)

    def write(self, frame: int, view: int, soft: SoftView) -> None:
        """Write one view of one frame."""
        self._shards.record(frame * self.key.views + view)[:] = pack(soft, self.key.layout)

    def finish(self) -> int:
        """Complete the store without the frames of broken images, and return its number of frames."""
        self._shards.flush()
        complete = self.done().all(1)
        missing = np.flatnonzero(~complete).tolist()
        write_json(self.folder / INDEX, {**self._document, "missing": missing, "complete": True})
        return int(complete.sum())


class SoftLabelStore:
    """Reader of a complete store.

    Args:
        folder: Folder with `store.json`.
        rest: Probability of the classes left out: `smooth` takes their mean, `drop` takes zero.

    Attributes:
        key: Conditions of the soft labels.
        root: Folder of the images.
        frames: Frames with all their views; `size` is (0, 0), because the store does not contain it.

    Raises:
        RunError: There is no store, or it is not complete.
        DataError: A shard is missing or belongs to another store.
    """

    def __init__(self, folder: Path, rest: Rest = "smooth") -> None:
        self.folder = Path(folder)
        document = _read_index(self.folder / INDEX)
        if document.format != FORMAT:
            message = f"{self.folder}: the format {document.format!r} is not {FORMAT}. Make the store again."
            raise RunError(message)
        if not document.complete:
            message = f"{self.folder} is not finished. Rerun its `cahqp relabel --soft` command."
            raise RunError(message)
        self.key = document.key.key()
        self.root = self._image_root(document.root)
        missing, listed = set(document.missing), document.frames
        self._positions = [p for p in range(len(listed)) if p not in missing]
        self.frames = [_frame(p, *listed[p]) for p in self._positions]
        for frame in self.frames:
            path_inside(self.root, frame.name)
        self._rest: Rest = rest
        self._shards = StoreShards(self.folder, self.key, len(listed))

    def _image_root(self, root: str) -> Path:
        """Return the folder of the images, which lies beside the store or is named relative to it."""
        if Path(root).is_absolute() or "\0" in root:
            message = f"{self.folder / INDEX}: root {root!r} is not a path relative to the store. Make the store again."
            raise DataError(message)
        return (self.folder / root).resolve()

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def check_teacher(self, teacher: str) -> None:
        """Check that the soft labels are from a teacher.

        Args:
            teacher: Content hash of the teacher.

        Raises:
            WeightsError: They are from another teacher.
        """
        if teacher != self.key.teacher:
            message = (
                f"{self.folder} contains soft labels of teacher {self.key.teacher[:12]}, not of {teacher[:12]}. Make a "
                "new store with `cahqp relabel --soft`, or give the teacher of the store."
            )
            raise WeightsError(message)

    def read(self, index: int, view: int) -> SoftView:
        """Return a view of the frame at an index of `frames`.

        Raises:
            DataError: The record is damaged.
        """
        record = self._shards.record(self._positions[index] * self.key.views + view)
        if int(record["check"][0]) != checksum(record):
            message = f"{self.folder}: view {view} of {self.frames[index].name} is damaged. Make the store again."
            raise DataError(message)
        return unpack(record, self.key.layout, self._rest)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without memory maps; a worker process maps the files itself."""
        return {**self.__dict__, "_shards": StoreShards(self.folder, self.key, self._shards.frames)}


def _as_json(record: Record) -> dict[str, Any]:
    """Return a record as JSON values."""
    content: dict[str, Any] = json.loads(record.model_dump_json(exclude_unset=True))
    return content


def _frame(position: int, name: str, camera: str, recording: str, index: int) -> Frame:
    return Frame(position + 1, name, (0, 0), camera, recording, index)
