"""File names of images in Label Studio's tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from cahqp.coco.sources import is_image

_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")
"""Prefix of uploaded files."""


def image_name(data: Mapping[str, Any]) -> str:
    """Return the file name of a task's image, below the folder of the images where the task contains it.

    Args:
        data: `data` of a task, or a task of JSON-MIN. `file_name` takes precedence, then `image`, then any other text
            that ends like an image.

    Raises:
        KeyError: The task has no image.
    """
    if isinstance(data.get("file_name"), str) and data["file_name"]:
        return str(data["file_name"])
    texts = [
        value for key, value in sorted(data.items(), key=lambda item: item[0] != "image") if isinstance(value, str)
    ]
    names = [_local_name(text) for text in texts]
    found = [name for name in names if is_image(name)]
    if not found:
        message = "image"
        raise KeyError(message)
    return found[0]


def _local_name(url: str) -> str:
    if "?d=" in url:  # local storage
        return unquote(url.rpartition("?d=")[2])
    path = unquote(url.partition("://")[2].partition("/")[2].partition("?")[0] if "://" in url else url)
    if "/upload/" in path or path.startswith("upload/"):
        return _UPLOAD.sub("", PurePosixPath(path).name)
    return path.removeprefix("/data/").lstrip("/")
