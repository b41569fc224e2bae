"""Decoding of images that may be broken: one policy for training and for edge packages, without torch."""

from __future__ import annotations

import io
import logging
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cahqp.errors import DataError

# Formats of traffic cameras. Pillow's other readers are never tried on a file that only claims to be an image.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_DEEP = ("I", "F")  # Pillow's modes of more than 8 bits, which it would clip to 255 rather than scale
_DEPTHS = (12, 14, 16)
_ORIENTATION = 0x0112  # tag of EXIF 2.32
_MAX_PIXELS = 100_000_000  # 12,000 x 8,000: above any camera, and 300 MB once decoded
# Errors of Pillow's readers on damaged files; OSError covers a missing and a truncated one.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)

# Keep one block of pixels for the next frame: fresh pages cost a third of the decoding time. Pillow documents this
# function, but its types do not export it.
Image.core.set_blocks_max(1)  # type: ignore[attr-defined]


_log = logging.getLogger(__name__)


class BrokenImageError(DataError):
    """An image that cannot be decoded, or whose size differs from that in its annotations."""


class _ImageFile(io.BufferedReader):
    """File that allocates at most its own size: a chunk of a PNG may claim 4 GB, and Pillow reads as much."""

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes; see `io.BufferedReader`."""
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image without decoding it.

    Raises:
        BrokenImageError: The file, or the block that decodes it, fails; or it is larger than 100 megapixels.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            message = "is not a regular file"  # a FIFO or device could send data for ever
            raise BrokenImageError(message)
        with _ImageFile(io.FileIO(path)) as file, Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                message = f"{image.width}x{image.height} pixels are more than the {_MAX_PIXELS:,} allowed"
                raise BrokenImageError(message)
            yield image
    except UnidentifiedImageError as error:
        message = f"cannot be decoded (it is not {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]})"
        raise BrokenImageError(message) from error
    except _DAMAGE as error:
        message = f"cannot be decoded ({error or type(error).__name__})"
        raise BrokenImageError(message) from error


def read_image(path: Path, size: tuple[int, int] | None = None, bgr: bool = False) -> NDArray[np.uint8]:
    """Decode an image as (H, W, 3) uint8.

    An EXIF orientation is not applied, because COCO boxes are drawn on stored pixels. Grey, palette and CMYK images
    become RGB and transparency is dropped. Of more than 8 bits the upper 8 of the bits in use count: 12, 14 or 16, the
    fewest that hold the brightest pixel, because thermal cameras write 12 or 14 bits into 16.

    Args:
        path: Image file.
        size: Required height and width; `None` allows any.
        bgr: Return the channels in OpenCV's order, and a read-only array, which saves a copy.

    Raises:
        BrokenImageError: It cannot be decoded whole, is larger than 100 megapixels, or has another size.
    """
    with _opened(path) as image:
        _check_size(image, size)
        if size is not None and _orientation(image) != 1:
            _warn_once(
                "Images have an EXIF orientation, which is not applied: their boxes must be drawn on stored pixels. "
                "`cahqp import` turns boxes of the upright view."
            )
        return pixels_of(image, bgr)


class Header(NamedTuple):
    """Header of an image.

    Attributes:
        size: Height and width of the stored pixels.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
    """

    size: tuple[int, int]
    orientation: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width as viewers show the image."""
        height, width = self.size
        return (width, height) if self.orientation > 4 else (height, width)


def read_header(path: Path) -> Header:
    """Return the header of an image without decoding its pixels.

    Raises:
        BrokenImageError: It is not an image, or is larger than 100 megapixels.
    """
    with _opened(path) as image:
        return Header((image.height, image.width), _orientation(image))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 without a valid one."""
    orientation = image.getexif().get(_ORIENTATION, 1)
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


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
            return float(pixels_of(image).mean())
        image.draft("L", (64, 64))
        return float(np.asarray(image.convert("L").reduce(max(1, min(image.size) // 64))).mean())


def _check_size(image: Image.Image, size: tuple[int, int] | None) -> None:
    if size is not None and size != (image.height, image.width):
        turned = "; its EXIF orientation is not applied" if size == image.size else ""
        message = f"is {image.width}x{image.height} pixels, but its annotations are for {size[1]}x{size[0]}{turned}"
        raise BrokenImageError(message)


def _upper_bits(grey: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the upper 8 bits of the bits in use."""
    peak = int(grey.max(initial=0))
    bits = next((bits for bits in _DEPTHS if peak < 1 << bits), _DEPTHS[-1])
    if bits < _DEPTHS[-1]:
        _warn_once(f"Images with 16 bits per pixel use {bits} of them, and are scaled from these to 8.")
    return grey >> (bits - 8)


@lru_cache(maxsize=64)
def _warn_once(text: str) -> None:
    _log.warning(text)


def pixels_of(image: Image.Image, bgr: bool = False) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) uint8, converted as in `read_image`.

    Args:
        image: Image in any mode of Pillow.
        bgr: Return the channels in OpenCV's order, and a read-only array.
    """
    if image.mode.startswith(_DEEP):
        grey = _upper_bits(np.asarray(image).astype(np.int64))
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if bgr:
        return np.frombuffer(image.tobytes("raw", "BGR"), np.uint8).reshape(image.height, image.width, 3)
    return np.array(image)
