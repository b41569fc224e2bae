"""Decoding of images that may be broken, and quarantine for broken ones."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cahqp.errors import DataError
from cahqp.files import write_json

# Formats of traffic cameras. Pillow's other readers are never tried on a file that only claims to be an image.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_DEEP = ("I", "F")  # Pillow's modes of more than 8 bits, which it would clip to 255 rather than scale
_MAX_PIXELS = 100_000_000  # 12,000 x 8,000: above any camera, and 300 MB once decoded
# Errors of Pillow's readers on damaged files; OSError covers a missing and a truncated one.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


class BrokenImageError(DataError):
    """An image that cannot be decoded, or whose size differs from that in its annotations."""


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image without decoding it.

    Raises:
        BrokenImageError: The file, or the block that decodes it, fails; or it is larger than 100 megapixels.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                message = f"{image.width}x{image.height} pixels are more than the {_MAX_PIXELS:,} allowed"
                raise BrokenImageError(message)
            yield image
    except _DAMAGE as error:
        message = f"cannot be decoded ({error or type(error).__name__})"
        raise BrokenImageError(message) from error


def read_image(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode an image as (H, W, 3) uint8 RGB.

    An EXIF orientation is not applied, because COCO boxes are drawn on stored pixels. Grey, palette and CMYK images
    become RGB, transparency is dropped, 16 bits become their upper 8.

    Args:
        path: Image file.
        size: Required height and width; `None` allows any.

    Raises:
        BrokenImageError: It cannot be decoded whole, is larger than 100 megapixels, or has another size.
    """
    with _opened(path) as image:
        _check_size(image, size)
        return _pixels(image)


def check_header(path: Path, size: tuple[int, int]) -> None:
    """Check format and size of an image without decoding its pixels.

    Args:
        path: Image file.
        size: Required height and width.

    Raises:
        BrokenImageError: It is not an image, is larger than 100 megapixels, or has another size.
    """
    with _opened(path) as image:
        _check_size(image, size)


def read_brightness(path: Path) -> float:
    """Return the mean luminance of an image, 0..255, decoded as small as the format allows.

    Raises:
        BrokenImageError: It cannot be decoded.
    """
    with _opened(path) as image:
        if image.mode.startswith(_DEEP):
            return float(_pixels(image).mean())
        image.draft("L", (64, 64))
        return float(np.asarray(image.convert("L").reduce(max(1, min(image.size) // 64))).mean())


def _check_size(image: Image.Image, size: tuple[int, int] | None) -> None:
    if size is not None and size != (image.height, image.width):
        turned = "; its EXIF orientation is not applied" if size == image.size else ""
        message = f"is {image.width}x{image.height} pixels, but its annotations are for {size[1]}x{size[0]}{turned}"
        raise BrokenImageError(message)


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith(_DEEP):
        grey = np.asarray(image).astype(np.int64) >> 8
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


class Quarantine:
    """Broken images of one set of frames, by position.

    Marks are in shared memory, so that the main process has those of a loader's worker processes.

    Args:
        names: Names of all frames of the set.
        limit: Share of broken frames, 0..1, above which `check` raises.
        read: Decodes the image at a position, or raises BrokenImageError. Called again for the reason of each broken
            frame, because a worker process can only leave a mark.
    """

    def __init__(self, names: Sequence[str], limit: float, read: Callable[[int], Any]) -> None:
        self._names = names
        self._limit = limit
        self._read = read
        self._marks = torch.zeros(len(names), dtype=torch.bool)
        self._marks.share_memory_()  # type: ignore[no-untyped-call]

    def add(self, position: int) -> None:
        """Mark the frame at a position as broken."""
        self._marks[position] = True

    def read(self, position: int) -> Any:
        """Return the image at a position; mark a broken one and return `None`."""
        try:
            return self._read(position)
        except BrokenImageError:
            self.add(position)
            return None

    def healthy(self, position: int) -> tuple[int, Any]:
        """Return the image at a position or, if it is broken, the next one that is not; and its position.

        Raises:
            DataError: The share of broken frames is above the limit, or all are broken.
        """
        for candidate in [*range(position, len(self._names)), *range(position)]:
            if candidate in self:
                continue
            image = self.read(candidate)
            if image is not None:
                return candidate, image
            self.check()
        message = f"None of {len(self._names)} images can be decoded. Check the files."
        raise DataError(message)

    def __contains__(self, position: int) -> bool:
        """Return whether the frame at a position is marked as broken."""
        return bool(self._marks[position])

    def __len__(self) -> int:
        """Return the number of frames marked as broken."""
        return int(self._marks.sum())

    def positions(self) -> list[int]:
        """Return the positions of the frames marked as broken, in order."""
        marked: list[int] = self._marks.nonzero().flatten().tolist()
        return marked

    def entries(self) -> list[dict[str, str]]:
        """Return name and reason of each frame marked as broken, in the order of the set."""
        return [{"file_name": self._names[p], "reason": self._reason(p)} for p in self.positions()]

    def _reason(self, position: int) -> str:
        try:
            self._read(position)
        except BrokenImageError as error:
            return str(error)
        return "could not be decoded at first, but could be later"

    def check(self) -> None:
        """Refuse too many broken frames.

        Raises:
            DataError: The share of broken frames is above the limit.
        """
        count = len(self)
        if count <= self._limit * len(self._names):
            return
        lines = [f"  {entry['file_name']}: {entry['reason']}" for entry in self.entries()[:10]]
        more = [f"  ... and {count - 10} more"] if count > 10 else []
        head = (
            f"{count} of {len(self._names)} images are broken, "
            f"more than the share of {self._limit:g} that `max_invalid_share` allows:"
        )
        remedy = "Restore these files, or raise `max_invalid_share` to continue without them."
        raise DataError("\n".join([head, *lines, *more, remedy]))


def write_quarantine(path: Path, quarantines: Sequence[Quarantine]) -> None:
    """Write the broken images of several sets as `quarantine.json`, unless there are none."""
    entries = [entry for quarantine in quarantines for entry in quarantine.entries()]
    if entries:
        write_json(path, {"images": entries})
