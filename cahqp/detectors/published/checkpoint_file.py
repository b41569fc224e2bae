"""Reads checkpoint files of others without running what is in them."""

from __future__ import annotations

import json
import pickle
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cahqp.errors import WeightsError
from cahqp.files import sha256

# Where a training's checkpoint keeps the weights, best first: the average is what was published as its result.
PLACES = (("ema", "module"), ("ema_model",), ("ema",), ("model",), ("state_dict",), ())
# Names of a Hugging Face folder's weights.
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class CheckpointFile:
    """Tensors of a file under the names that its authors gave them.

    Attributes:
        path: The file; within a folder, the one that holds the weights.
        digest: SHA-256 of its bytes.
        place: Where in the file the tensors were, such as `ema.module`; empty for the top.
        tensors: By name.
        config: Of the `config.json` beside a Hugging Face file; empty where there is none.
    """

    path: Path
    digest: str
    place: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path) -> CheckpointFile:
    """Read a `.pth`, `.pt`, `.bin` or `.safetensors` file, or a Hugging Face folder.

    Raises:
        WeightsError: There is none, it is damaged, is no checkpoint, or holds more than tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        message = f"Checkpoint {path} does not exist. Give the path of a published .pth, .bin or .safetensors file."
        raise WeightsError(message)
    with path.open("rb") as file:
        head = file.read(512)
    _refuse_text(path, head)
    if head[8:9] == b"{":
        tensors, place = _read_safetensors(path), ""
    else:
        tensors, place = _weights_in(path, _read_pickle(path))
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return CheckpointFile(path, sha256(path), place, tensors, _config_beside(path))


def _in_folder(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    message = f"The folder {folder} holds no {' or '.join(FOLDER_FILES)}. Give the checkpoint file itself."
    raise WeightsError(message)


def _refuse_text(path: Path, head: bytes) -> None:
    """Refuse what a download leaves that was no download of weights."""
    start = head.lstrip()[:200].lower()
    if not head:
        message = f"{path} is empty. Download it again."
        raise WeightsError(message)
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        message = f"{path} is a web page, not a checkpoint: the download was answered with an error. Download it again."
        raise WeightsError(message)
    if start.startswith(b"version https://git-lfs"):
        message = f"{path} is a Git LFS pointer, not the file itself. Run `git lfs pull` where it came from."
        raise WeightsError(message)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            if "cahqp" in (file.metadata() or {}):
                message = f"{path} is a model file of cahqp already. Use it as it is."
                raise WeightsError(message)
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        message = f"{path} is no readable safetensors file ({error}). It may be cut short: download it again."
        raise WeightsError(message) from error


def _read_pickle(path: Path) -> Any:
    """Return what a file of `torch.save` holds, tensors and plain values only.

    `Namespace` is let through, as official DINO checkpoints carry the arguments of their training: it is a bag of
    attributes and runs nothing.
    """
    try:
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own words are left out: they advise to read the file in the way that runs its code.
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {found[1]}" if found else "it is damaged, or was written by something else"
        message = (
            f"{path} is no checkpoint of tensors and plain values ({reason}). It is not read, because that could run "
            "code. If you trust it, load it in a process of your own and save only its state dict with torch.save."
        )
        raise WeightsError(message) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        told = next(iter(str(error).splitlines()), type(error).__name__)
        message = f"{path} cannot be read ({told[:200]}). It may be cut short: download it again."
        raise WeightsError(message) from error


def _weights_in(path: Path, content: Any) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of the first place that has any, and its name."""
    if not isinstance(content, Mapping):
        message = f"{path} holds a {type(content).__name__}, not a checkpoint with named weights."
        raise WeightsError(message)
    for place in PLACES:
        inner: Any = content
        for key in place:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
            others = [str(name) for name, value in inner.items() if not isinstance(value, Tensor)]
            if tensors and not others:
                return tensors, ".".join(place)
    message = (
        f"{path} holds {', '.join(map(str, list(content)[:8])) or 'nothing'}, but no named weights at "
        f"{', '.join('.'.join(place) for place in PLACES if place)} or at the top."
    )
    raise WeightsError(message)


def _config_beside(path: Path) -> dict[str, Any]:
    config = path.with_name("config.json")
    if path.name not in FOLDER_FILES or not config.is_file():
        return {}
    try:
        read = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{config} beside the checkpoint is not readable JSON ({error}). Mend it or move it away."
        raise WeightsError(message) from error
    return read if isinstance(read, dict) else {}
