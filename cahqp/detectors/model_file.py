"""Model files: one safetensors file with everything that rebuilds a detector, and no executable content."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cahqp.detectors.base import Detector, mismatches, weights_error
from cahqp.detectors.dino import DINO
from cahqp.detectors.huggingface.detector import HuggingFaceDetector
from cahqp.detectors.metadata import build_preprocessing, check_settings, parse_metadata
from cahqp.detectors.prompts.visual_prompt import VisualPrompt
from cahqp.detectors.rtdetr import RTDETR
from cahqp.errors import ConfigError, WeightsError
from cahqp.files import atomic_write

FORMAT = 1
_SPARE_PARAMETERS = 20_000_000  # 80 MB; a backbone builds layers that the detector does not use
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")
_CONSTRUCTOR_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""Errors of timm and transformers for settings that do not fit together."""

ARCHITECTURES: dict[str, type[Detector]] = {"DINO": DINO, "RTDETR": RTDETR, "HuggingFaceDetector": HuggingFaceDetector}


def weights_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Return the SHA-256 over the sorted tensors (names, types, shapes, bytes) and the metadata."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(path: Path, detector: Detector, provenance: Mapping[str, Any] | None = None, half: bool = False) -> str:
    """Write a detector as a model file, atomically.

    Args:
        path: The file to write; usually `model.safetensors`.
        detector: Detector with its classes, preprocessing, thresholds and prompt.
        provenance: JSON values that describe the origin of the weights; the detector's own by default.
        half: Store floating-point tensors in float16, half the size; `load` converts them back to float32.

    Returns:
        The content hash.

    Raises:
        WeightsError: A weight is not finite, or `load` does not support the class of the detector.
    """
    if type(detector) not in ARCHITECTURES.values():
        raise weights_error(path, f"was not written: {type(detector).__name__} is none of {', '.join(ARCHITECTURES)}")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in detector.state_dict().items()}
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        reason = "Training diverged" + (", or they are too large for half precision" if half else "")
        raise weights_error(path, f"was not written: {len(bad)} weights are not finite, {bad[0]} among them. {reason}")
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "architecture": type(detector).__name__,
        "settings": detector.settings,
        "classes": list(detector.classes),
        "preprocessing": vars(detector.preprocessing),
        "prompt": None if detector.prompt is None else detector.prompt.describe(),
        "thresholds": detector.thresholds,
        "provenance": dict(detector.provenance if provenance is None else provenance),
    }
    metadata = json.loads(json.dumps(metadata))  # tuples become lists, as a reader gets them
    digest = weights_hash(tensors, metadata)
    header = {"cahqp": json.dumps(metadata, sort_keys=True), "hash": digest}
    with atomic_write(Path(path), "wb") as file:
        file.write(_with_sorted_header(to_bytes(tensors, header)))
    return digest


def _with_sorted_header(data: bytes) -> bytes:
    """Return a safetensors file with its header sorted: the library writes metadata in arbitrary order."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors that follow stay aligned
    return len(header).to_bytes(8, "little") + header + data[start:]


def read_metadata(path: Path) -> dict[str, Any]:
    """Return a model file's metadata and its `hash`, without reading the weights.

    Raises:
        WeightsError: The file is missing, damaged or not a model file of cahqp.
    """
    return _read(path, with_tensors=False)[1]


def count_parameters(path: Path) -> int:
    """Return the number of weights in a model file without BatchNorm statistics, from its header alone.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    _read(path, with_tensors=False)
    with safe_open(path, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys() if not name.endswith(STATISTICS)]
    return sum(math.prod(shape) for shape in shapes)


def _read(path: Path, *, with_tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = Path(path)
    header, tensors = _open(path, with_tensors)
    metadata = parse_metadata(path, header["cahqp"])
    if (found := metadata["format"]) != FORMAT:
        raise weights_error(path, f"has format {found}; this version reads {FORMAT}. Use the cahqp that wrote it")
    digest = header.get("hash")
    if with_tensors and weights_hash(tensors, metadata) != digest:
        raise weights_error(path, f"does not match its own hash {digest}: it was changed or damaged. Restore a copy")
    return tensors, {**metadata, "hash": digest}


def _open(path: Path, with_tensors: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the header of a model file and, if requested, its tensors."""
    if path.is_dir():
        problem = "is a folder, not a model file. Give the model.safetensors of a training"
        raise weights_error(path, f"{problem}; packages of `cahqp export` run in `cahqp detect`")
    if not path.is_file():
        message = f"Model file {path} does not exist. Give --weights the path of a model.safetensors."
        raise WeightsError(message)
    if path.suffix in PICKLES:
        remedy = f"`cahqp convert {path} {path.with_suffix('.safetensors').name}`"
        problem = f"is not a model file of cahqp. Convert a published checkpoint with {remedy}"
        raise weights_error(path, f"{problem}; a training of cahqp writes model.safetensors")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}
    except (SafetensorError, OSError, ValueError) as error:
        if path.suffix != ".safetensors":
            problem = "is not a model file. Give the model.safetensors of a training, or convert a published checkpoint"
            raise weights_error(path, problem) from error
        problem = f"is no readable safetensors file ({error}). It may be cut short: copy or train it again"
        raise weights_error(path, problem) from error
    if "cahqp" not in header:
        problem = "is a safetensors file, but no model file of cahqp: its metadata lacks the architecture"
        raise weights_error(
            path, f"{problem}. Convert a published checkpoint with `cahqp convert {path} model.safetensors`"
        )
    return header, tensors


def load(path: Path) -> Detector:
    """Return the detector of a model file, in eval mode on the CPU, in float32.

    Raises:
        WeightsError: The file is missing, damaged, of another format or does not fit its own description.
    """
    tensors, metadata = _read(path, with_tensors=True)
    if metadata["architecture"] not in ARCHITECTURES:
        raise weights_error(path, f"holds a {metadata['architecture']}; supported are {', '.join(ARCHITECTURES)}")
    with _limited_parameters(_SPARE_PARAMETERS + 4 * sum(tensor.numel() for tensor in tensors.values())):
        detector = _build(path, metadata)
    if broken := [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise weights_error(path, f"has {len(broken)} weights that are not finite, such as {broken[0]}. Train again")
    if problems := mismatches(detector.state_dict(), tensors):
        raise weights_error(path, f"does not fit its own description: {'; '.join(problems[:10])}")
    detector.load_state_dict(tensors)
    detector.thresholds = metadata["thresholds"]
    detector.provenance = {**metadata["provenance"], "hash": metadata["hash"]}
    return detector.eval()


@contextmanager
def _limited_parameters(limit: int) -> Iterator[None]:
    """Stop the construction of a detector that has far more weights than its file, before they take memory.

    torch gives a weight its memory when it is filled, which layers do after they register it.

    Args:
        limit: Largest number of weights; backbones drop some that they build.
    """
    count = 0

    def register(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal count
        count += 0 if parameter is None else parameter.numel()
        if count > limit:
            message = f"they describe a detector of more than {limit:,} weights, the file contains far fewer"
            raise ValueError(message)

    hook = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        hook.remove()


def _build(path: Path, metadata: Mapping[str, Any]) -> Detector:
    """Return the untrained detector described by the metadata."""
    kind = ARCHITECTURES[metadata["architecture"]]
    try:
        detector = kind(**check_settings(path, kind, metadata["settings"]))
    except _CONSTRUCTOR_ERRORS as error:
        problem = f"has settings that this version does not support ({error}). Use the cahqp that wrote it"
        raise weights_error(path, problem) from error
    try:
        detector.preprocessing = build_preprocessing(metadata["preprocessing"])
        if metadata["prompt"] is not None:
            detector.prompt = VisualPrompt(**check_settings(path, VisualPrompt, metadata["prompt"]))
    except (ConfigError, *_CONSTRUCTOR_ERRORS) as error:
        raise weights_error(path, f"has a prompt or preprocessing that is not supported ({error})") from error
    return detector
