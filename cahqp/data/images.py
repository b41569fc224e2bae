"""Decoding images that may be broken, and the list of those that are."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cahqp.errors import DataError
from cahqp.files import write_json

# Everything a traffic camera writes. Pillow's other readers are never tried on a file that only claims to be an image.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_DEEP = ("I", "F")  # Pillow's modes of more than 8 bits, which it would clip to 255 rather than scale
_MOST_PIXELS = 100_000_000  # 12,000 x 8,000: above any camera, and 300 MB once decoded
# What Pillow's readers raise on damaged files; OSError covers a missing and a truncated one.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


class BrokenImageError(DataError):
    """An image that cannot be decoded, or is not the one the annotations were drawn on."""


def read_image(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode an image as (H, W, 3) uint8 RGB.

    Pixels are taken as they are stored: an EXIF orientation is not applied, for COCO's boxes are drawn on the stored
    pixels. Grey, palette and CMYK images become RGB, transparency is dropped, 16 bits become their upper 8.

    Args:
        path: The file.
        size: Height and width that it must have; anything where `None`.

    Raises:
        BrokenImageError: It cannot be decoded whole, is larger than 100 megapixels, or has another size.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_pixels(image)
            if size is not None and size != (image.height, image.width):
                raise BrokenImageError(_other_size(image, size))
            return _pixels(image)
    except _DAMAGE as error:
        message = f"cannot be decoded ({error or type(error).__name__})"
        raise BrokenImageError(message) from error


def check_header(path: Path, size: tuple[int, int]) -> None:
    """Look whether a file is an image of a size, without decoding its pixels.

    Args:
        path: The file.
        size: Height and width that it must have.

    Raises:
        BrokenImageError: It is none, is larger than 100 megapixels, or has another size.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_pixels(image)
            if size != (image.height, image.width):
                raise BrokenImageError(_other_size(image, size))
    except _DAMAGE as error:
        message = f"cannot be decoded ({error or type(error).__name__})"
        raise BrokenImageError(message) from error


def read_brightness(path: Path) -> float:
    """Return the mean luminance of an image, 0..255, from a decode as small as the format allows.

    Args:
        path: The file.

    Raises:
        BrokenImageError: It cannot be decoded.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_pixels(image)
            if image.mode.startswith(_DEEP):
                return float(_pixels(image).mean())
            image.draft("L", (64, 64))
            return float(np.asarray(image.convert("L").reduce(max(1, min(image.size) // 64))).mean())
    except _DAMAGE as error:
        message = f"cannot be decoded ({error or type(error).__name__})"
        raise BrokenImageError(message) from error


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > _MOST_PIXELS:
        message = f"{image.width}x{image.height} pixels are more than the {_MOST_PIXELS:,} allowed"
        raise BrokenImageError(message)


def _other_size(image: Image.Image, size: tuple[int, int]) -> str:
    width, height = image.size
    turned = "; its EXIF orientation is not applied" if size == (width, height) else ""
    return f"is {width}x{height} pixels, but its annotations say {size[1]}x{size[0]}{turned}"


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith(_DEEP):
        grey = np.asarray(image).astype(np.int64) >> 8
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


class Quarantine:
    """The broken images of one set of frames, by name.

    Marks lie in shared memory, so that those of a loader's worker processes are seen in the main one.

    Args:
        names: Names of all frames of the set.
        limit: Share of broken frames, 0..1, above which `check` stops the run.
        reason: Says what is wrong with the frame at a position; asked again when the list is told, for a worker can
            only leave a mark.
    """

    def __init__(self, names: Sequence[str], limit: float, reason: Callable[[int], str]) -> None:
        self._names = names
        self._limit = limit
        self._reason = reason
        self._marks = torch.zeros(len(names), dtype=torch.bool)
        self._marks.share_memory_()  # type: ignore[no-untyped-call]

    def add(self, position: int) -> None:
        """Mark the frame at a position as broken."""
        self._marks[position] = True

    def healthy(self, position: int, read: Callable[[int], NDArray[np.uint8]]) -> tuple[int, NDArray[np.uint8]]:
        """Return the image at a position, or the next that is not broken, and where it is.

        Args:
            position: The frame asked for.
            read: Decodes the image at a position.

        Raises:
            DataError: The share of broken frames has passed the limit, or all are broken.
        """
        for candidate in [*range(position, len(self._names)), *range(position)]:
            if candidate in self:
                continue
            try:
                return candidate, read(candidate)
            except BrokenImageError:
                self.add(candidate)
                self.check()
        message = f"None of {len(self._names)} images can be decoded."
        raise DataError(message)

    def __contains__(self, position: int) -> bool:
        """Say whether the frame at a position is known to be broken."""
        return bool(self._marks[position])

    def __len__(self) -> int:
        """Return the number of frames known to be broken."""
        return int(self._marks.sum())

    def positions(self) -> list[int]:
        """Return the positions of the frames known to be broken, in order."""
        found: list[int] = self._marks.nonzero().flatten().tolist()
        return found

    def entries(self) -> list[dict[str, str]]:
        """Return name and reason of each frame known to be broken, in the order of the set."""
        return [{"file_name": self._names[p], "reason": self._reason(p)} for p in self.positions()]

    def check(self) -> None:
        """Stop when too many are broken.

        Raises:
            DataError: The share of broken frames has passed the limit.
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
        remedy = "Restore these files, or raise `max_invalid_share` to go on without them."
        raise DataError("\n".join([head, *lines, *more, remedy]))


def write_quarantine(path: Path, quarantines: Sequence[Quarantine]) -> None:
    """Write the broken images of several sets as `quarantine.json`; nothing where there are none."""
    entries = [entry for quarantine in quarantines for entry in quarantine.entries()]
    if entries:
        write_json(path, {"images": entries})
