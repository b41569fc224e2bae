"""XML files made by other programs."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

from cahqp.errors import DataError


def read_xml(path: Path, advice: str) -> ElementTree.Element:
    """Return the root of an XML file.

    Args:
        path: The file.
        advice: Last sentence of an error, such as the way to export the file.

    Raises:
        DataError: The file cannot be read, is not XML, or declares entities, which no labelling tool writes.
    """
    try:
        data = path.read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\x00" in data:
            message = f"{path} declares entities or is UTF-16, which labelling tools never write. {advice}"
            raise DataError(message)
        return ElementTree.fromstring(data)
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        message = f"{path} is no readable XML file ({error}). {advice}"
        raise DataError(message) from error


def number_of(text: str | None) -> float:
    """Return the finite number in a text.

    Raises:
        ValueError: The text is missing, not a number, NaN or infinite.
    """
    value = float(text) if text is not None else math.nan
    if not math.isfinite(value):
        message = f"{text!r} is not a finite number"
        raise ValueError(message)
    return value
