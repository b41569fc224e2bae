"""Reader of published checkpoint files that executes none of their content."""

from __future__ import annotations

import pickle
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cahqp.detectors.base import weights_error
from cahqp.errors import WeightsError
from cahqp.files import sha256
from cahqp.json_policy import parse_json

# Locations of the weights in a training checkpoint, best first: the published results are those of the average.
LOCATIONS = (("ema", "module"), ("ema_model",), ("ema",), ("model",), ("state_dict",), ())
# Starts of names in the files of the authors of DINO, detrex and RT-DETR, inside a module named `model`.
_AUTHORS = (
    "model._orig_mod.",
    "model.model.",
    "model.transformer.",
    "model.decoder.dec_score_head.",
    "model.decoder.input_proj.",
)
# Types of plain NumPy numbers that training scripts save beside tensors; they execute nothing.
_NUMPY: list[Any] = [
    np.dtype,
    np.float64,
    *{type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")},
]
_SCALAR: Any = np.float64(0).__reduce__()[0]
# Weight files in a Hugging Face folder.
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class CheckpointFile:
    """Tensors of a checkpoint under their published names.

    Attributes:
        path: The file; for a folder, its weight file.
        digest: SHA-256 of its bytes.
        place: Location of the tensors in the file, such as `ema.module`; empty for the top.
        tensors: By name.
        config: Content of the `config.json` beside a Hugging Face file; empty without one.
        processor: Content of the `preprocessor_config.json` beside it; empty without one.
    """

    path: Path
    digest: str
    place: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path) -> CheckpointFile:
    """Read a `.pth`, `.pt`, `.bin` or `.safetensors` file, or a Hugging Face folder.

    Raises:
        WeightsError: The file is missing, damaged, no checkpoint, or has more than tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not files:
            message = f"The folder {path} holds no {' or '.join(FOLDER_FILES)}. Give the checkpoint file itself."
            raise WeightsError(message)
        path = files[0]
    if not path.is_file():
        message = f"Checkpoint {path} does not exist. Give the path of a published .pth, .bin or .safetensors file."
        raise WeightsError(message)
    with path.open("rb") as file:
        head = file.read(512)
    _check_download(path, head)
    tensors, place = (_read_safetensors(path), "") if head[8:9] == b"{" else _find_weights(path, _read_pickle(path))
    processor = _read_config(path, "preprocessor_config.json")
    return CheckpointFile(path, sha256(path), place, _unwrapped(tensors), _read_config(path), processor)


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the prefixes of wrappers: DataParallel, torch.compile, and modules named `model`.

    Names of transformers begin with `model.`, too; theirs stay.
    """
    for prefix in ("module.", "_orig_mod.", "module."):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    wrapped = all(name.startswith("model.") for name in tensors)
    if wrapped and any(name.startswith(_AUTHORS) for name in tensors):
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        return _unwrapped(tensors)
    return tensors


def _check_download(path: Path, head: bytes) -> None:
    """Check that a download is not an error page, a pointer or empty."""
    start = head.lstrip()[:200].lower()
    if not head:
        raise weights_error(path, "is empty. Download it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise weights_error(path, "is a web page: the server returned an error. Download it again")
    if start.startswith(b"version https://git-lfs"):
        raise weights_error(path, "is a Git LFS pointer, not the file itself. Run `git lfs pull` in its repository")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            if "cahqp" in (file.metadata() or {}):
                raise weights_error(path, "is a model file of cahqp already. Use it without conversion")
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        problem = f"is no readable safetensors file ({error}). It may be cut short: download it again"
        raise weights_error(path, problem) from error


def _read_pickle(path: Path) -> Any:
    """Return the tensors and plain values of a file of `torch.save`.

    `Namespace` is allowed, because official DINO checkpoints contain their training arguments in one. It only has
    attributes and executes nothing.
    """
    try:
        with torch.serialization.safe_globals([Namespace, _SCALAR, *_NUMPY]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message is not repeated: it recommends to load the file in the way that executes its code.
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it needs {found[1]}" if found else "it is damaged, or of another format"
        problem = (
            f"is no checkpoint of tensors and plain values ({reason}). It is not read, because that could run code"
        )
        remedy = "If you trust it, load it in a separate process and save only its state dict with torch.save"
        raise weights_error(path, f"{problem}. {remedy}") from error
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
    ) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        problem = f"cannot be read ({reason[:200]}). It may be cut short: download it again"
        raise weights_error(path, problem) from error


def _find_weights(path: Path, content: Any) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of the first location that has any, and its name."""
    if not isinstance(content, Mapping):
        raise weights_error(path, f"holds a {type(content).__name__}, not a checkpoint with named weights")
    for place in LOCATIONS:
        inner: Any = content
        for key in place:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping) and inner and all(isinstance(value, Tensor) for value in inner.values()):
            return {str(name): tensor for name, tensor in inner.items()}, ".".join(place)
    keys, places = ", ".join(map(str, list(content)[:8])), ", ".join(".".join(place) for place in LOCATIONS if place)
    raise weights_error(path, f"holds {keys or 'nothing'}, but no named weights at {places} or at the top")


def _read_config(path: Path, name: str = "config.json") -> dict[str, Any]:
    config = path.with_name(name)
    if path.name not in FOLDER_FILES or not config.is_file():
        return {}
    try:
        content = parse_json(config.read_bytes(), finite=False)
    except (OSError, ValueError) as error:
        raise weights_error(config, f"is not readable JSON ({error}). Fix it or move it away") from error
    return content if isinstance(content, dict) else {}
