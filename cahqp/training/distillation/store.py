"""The soft-label store: a teacher's answers to M views of every frame, asked once and read in every epoch.

FDBPL's region information lookup (arXiv 2505.18053) for detection. A folder of memory-mapped shards of records of
fixed size, view after view, frame after frame; `store.json` says what they are, and is marked complete last.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import DataError, RunError, WeightsError
from cahqp.files import read_json, sync_directory, write_json
from cahqp.frame import Frame
from cahqp.training.distillation.records import RecordLayout, Rest, SoftView, checksum, pack, unpack

FORMAT = 1
INDEX = "store.json"
_MAGIC = b"cahqpsoft"
_HEADER = 64  # bytes before a shard's first record: the magic and the store's key
_SHARD = 32 << 20  # bytes of a shard; many for a copy to go on from, few enough to list


@dataclass(frozen=True)
class StoreKey:
    """What the answers depend on. Stores with the same key and frames hold the same.

    Attributes:
        teacher: Content hash of the teacher's model file, its prompts included.
        prompt: Hash of the weights of its prompts alone; `None` where it has none.
        classes: Class names of the teacher.
        views: Views of each frame.
        seed: Decides the views.
        augmentation: Their strength.
        layout: What a record holds.
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
        """32 bytes that stand in every shard."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()

    @classmethod
    def read(cls, document: dict[str, Any]) -> Self:
        """Return the key that `store.json` holds."""
        layout = RecordLayout(**document["layout"])
        return cls(**{**document, "classes": tuple(document["classes"]), "layout": layout})


@dataclass
class StoreShards:
    """The shards of a store, mapped into memory when first asked for.

    Attributes:
        folder: Of the store.
        key: Stands in every shard.
        frames: Number of frames.
        writable: Make the shards where missing.
    """

    folder: Path
    key: StoreKey
    frames: int
    writable: bool = False
    _maps: dict[int, NDArray[np.void]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Share the records out to shards."""
        self.per_shard = max(1, _SHARD // self.key.layout.dtype.itemsize)

    def __len__(self) -> int:
        """Return the number of records."""
        return self.frames * self.key.views

    def record(self, number: int) -> NDArray[np.void]:
        """Return the record, (1,), with this number, as it lies in its file."""
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
            _make_room(path, header, size)
        if not path.is_file() or path.stat().st_size != size:
            message = f"{path} is missing or has another size than the {size} bytes it was made with. Make it again."
            raise DataError(message)
        with path.open("rb") as file:
            if file.read(_HEADER) != header:
                message = (
                    f"{path} belongs to another store: its teacher, prompts or settings differ from {INDEX}'s. "
                    "Take the folder as it was written, or make it again."
                )
                raise DataError(message)
        mode: Any = "r+" if self.writable else "r"
        return np.memmap(path, self.key.layout.dtype, mode, offset=_HEADER, shape=(records,))

    def flush(self) -> None:
        """Bring everything written to the disk."""
        for mapped in self._maps.values():
            if isinstance(mapped, np.memmap):
                mapped.flush()
        sync_directory(self.folder)


def _make_room(path: Path, header: bytes, size: int) -> None:
    """Make a shard where there is none, and give it all its room on the disk.

    What is written to a mapped file without room, because the disk is full, kills the process.

    Raises:
        RunError: There is no room.
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
        message = f"{path} could not be made ({error.strerror}). Make room and run the same command again."
        raise RunError(message) from error


def _allocate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS, Windows
            file.truncate(size)


class SoftLabelWriter:
    """Fills a store, in any order, from where a killed run stopped.

    Args:
        folder: Of the store; made where missing.
        key: What the answers depend on.
        root: Folder of the images, relative to the store's.
        frames: Every frame; `name` is its image file below `root`.

    Raises:
        RunError: The folder holds a store of another teacher, other frames or other settings.
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
        elif {k: v for k, v in read_json(index).items() if k in self._document} != self._document:
            message = (
                f"{self.folder} holds a store of another teacher, other frames or settings. Choose another folder."
            )
            raise RunError(message)
        self._shards = StoreShards(self.folder, key, len(frames), writable=True)

    def done(self) -> NDArray[np.bool_]:
        """Return (frames, views): whether a view is written whole. A record torn by a kill fails its check."""
        whole = [self._is_whole(number) for number in range(len(self._shards))]
        return np.array(whole, np.bool_).reshape(-1, self.key.views)

    def _is_whole(self, number: int) -> bool:
        record = self._shards.record(number)
        return bool(record["check"][0]) and int(record["check"][0]) == checksum(record)

    def write(self, frame: int, view: int, soft: SoftView) -> None:
        """Write one view of one frame."""
        self._shards.record(frame * self.key.views + view)[:] = pack(soft, self.key.layout)

    def finish(self) -> int:
        """Complete the store. Frames that miss a view, because their image is broken, are left out of it.

        Returns:
            The number of complete frames.
        """
        self._shards.flush()
        complete = self.done().all(1)
        missing = np.flatnonzero(~complete).tolist()
        write_json(self.folder / INDEX, {**self._document, "missing": missing, "complete": True})
        return int(complete.sum())


class SoftLabelStore:
    """A complete store, for reading.

    Args:
        folder: Holds `store.json`.
        rest: What classes that were left out are given: `smooth`, the mean of what they had; `drop`, zero.

    Attributes:
        key: What the answers depend on.
        root: Folder of the images.
        frames: The frames whose views are all there; `size` is (0, 0), for only the image itself tells.

    Raises:
        RunError: There is no store, or none that was completed.
        DataError: A shard is missing or of another store.
    """

    def __init__(self, folder: Path, rest: Rest = "smooth") -> None:
        self.folder = Path(folder)
        document = read_json(self.folder / INDEX)
        if document.get("format") != FORMAT:
            message = f"{self.folder}: the format {document.get('format')!r} is not {FORMAT}. Make the store again."
            raise RunError(message)
        if not document["complete"]:
            message = f"{self.folder} is not finished. Run the `cahqp relabel --soft` that began it again."
            raise RunError(message)
        self.key = StoreKey.read(document["key"])
        self.root = (self.folder / document["root"]).resolve()
        missing, listed = set(document["missing"]), document["frames"]
        self._positions = [p for p in range(len(listed)) if p not in missing]
        self.frames = [_frame(p, *listed[p]) for p in self._positions]
        self._rest: Rest = rest
        self._shards = StoreShards(self.folder, self.key, len(listed))

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def check_teacher(self, teacher: str) -> None:
        """Refuse a store whose answers are another teacher's.

        Args:
            teacher: Content hash of the teacher that is to be learnt from.

        Raises:
            WeightsError: It is not the store's.
        """
        if teacher != self.key.teacher:
            message = (
                f"{self.folder} holds the answers of teacher {self.key.teacher[:12]}, not of {teacher[:12]}, which is "
                "to be learnt from. Make a new store with `cahqp relabel --soft`, or give the teacher that it is of."
            )
            raise WeightsError(message)

    def read(self, index: int, view: int) -> SoftView:
        """Return a view of the frame at a place in `frames`.

        Raises:
            DataError: Its record is damaged.
        """
        record = self._shards.record(self._positions[index] * self.key.views + view)
        if int(record["check"][0]) != checksum(record):
            message = f"{self.folder}: view {view} of {self.frames[index].name} is damaged. Make the store again."
            raise DataError(message)
        return unpack(record, self.key.layout, self._rest)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the maps out: a worker process maps the files itself."""
        return {**self.__dict__, "_shards": StoreShards(self.folder, self.key, self._shards.frames)}


def _frame(position: int, name: str, camera: str, recording: str, index: int) -> Frame:
    return Frame(position + 1, name, (0, 0), camera, recording, index)
