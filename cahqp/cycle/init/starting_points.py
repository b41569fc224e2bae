"""Starting points of `cahqp init`: published COCO checkpoints by name, and local files."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cahqp.cycle.init.download import download
from cahqp.errors import ConfigError, WeightsError

Role = Literal["teacher", "student"]


@dataclass(frozen=True)
class Published:
    """A published checkpoint, trained on COCO.

    Attributes:
        role: Part that it plays in a cycle.
        url: Address of the file.
        source: Repository of the publisher.
        licence: Licence of that repository.
        sha256: Hash from the publisher; `None` if none is published. Then the first download is trusted and recorded.
    """

    role: Role
    url: str
    source: str
    licence: str
    sha256: str | None = None


_DETREX = "https://github.com/IDEA-Research/detrex-storage/releases/download"
_RTDETR = "https://github.com/lyuwenyu/storage/releases/download"
_DETREX_SOURCE = ("https://github.com/IDEA-Research/detrex", "Apache-2.0")
_RTDETR_SOURCE = ("https://github.com/lyuwenyu/RT-DETR", "Apache-2.0")

PUBLISHED: dict[str, Published] = {
    "dino-r50": Published("teacher", f"{_DETREX}/v0.1.1/dino_r50_4scale_24ep.pth", *_DETREX_SOURCE),
    "dino-r101": Published("teacher", f"{_DETREX}/v0.1.1/dino_r101_4scale_12ep.pth", *_DETREX_SOURCE),
    "rtdetr-r18": Published("student", f"{_RTDETR}/v0.1/rtdetr_r18vd_dec3_6x_coco_from_paddle.pth", *_RTDETR_SOURCE),
    "rtdetr-r34": Published("student", f"{_RTDETR}/v0.1/rtdetr_r34vd_dec4_6x_coco_from_paddle.pth", *_RTDETR_SOURCE),
    "rtdetrv2-r18": Published("student", f"{_RTDETR}/v0.2/rtdetrv2_r18vd_120e_coco_rerun_48.1.pth", *_RTDETR_SOURCE),
}
"""Checkpoints by name. Neither publisher states hashes."""


@dataclass(frozen=True)
class Start:
    """Model file that a training starts from.

    Attributes:
        path: The model file.
        origin: Name of the checkpoint, or the given file.
        classes: Classes of the model file.
        note: Origin of the weights, for a comment.
        trained: Whether it is a model file of cahqp for these cameras, which needs no source training.
    """

    path: Path
    origin: str
    classes: tuple[str, ...]
    note: str
    trained: bool


def check_start(role: Role, given: str | None) -> None:
    """Refuse a name that is neither in the table nor a file, before any work.

    Raises:
        ConfigError: The name is unknown, or names a checkpoint of the other role.
    """
    if given is None or Path(given).exists():
        return
    names = [name for name, entry in PUBLISHED.items() if entry.role == role]
    if given not in names:
        close = difflib.get_close_matches(given, names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        message = f"--{role} {given} is neither a file nor a known checkpoint.{hint} Known: {', '.join(names)}."
        raise ConfigError(message)


def prepare_start(role: Role, given: str, folder: Path, classes: Sequence[str]) -> Start:
    """Download if necessary, convert if necessary, and return the model file.

    Args:
        role: Part in the cycle.
        given: Name of a published checkpoint, or a file.
        folder: Folder for downloads and converted files.
        classes: Classes of the labels; those that the checkpoint lacks start untrained.

    Raises:
        WeightsError: The checkpoint cannot be downloaded or read, or has none of the classes.
    """
    if Path(given).exists():
        local = Path(given)
        start = _read_model_file(local) if local.suffix == ".safetensors" and _is_ours(local) else None
        return start or _convert(role, local, folder / f"{local.stem}.safetensors", given, f"from {given}", classes)
    entry = PUBLISHED[given]
    print(f"{given}: {entry.url} ({entry.source}, {entry.licence})", flush=True)
    file = download(entry.url, folder, entry.sha256)
    return _convert(role, file, folder / f"{given}.safetensors", given, f"{entry.source}, {entry.licence}", classes)


def _is_ours(path: Path) -> bool:
    """Return whether a safetensors file is a model file of cahqp; a damaged one is refused when it is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return "cahqp" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _read_model_file(path: Path) -> Start:
    from cahqp.detectors.model_file import read_metadata

    metadata = read_metadata(path)
    return Start(path, str(path), tuple(metadata["classes"]), f"from {path}", trained=True)


def _convert(role: Role, checkpoint: Path, output: Path, origin: str, note: str, classes: Sequence[str]) -> Start:
    from cahqp.detectors.published.convert import convert
    from cahqp.detectors.published.options import ConvertOptions

    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        convert(ConvertOptions(weights=checkpoint, output=output, classes=",".join(classes)))
    except WeightsError as error:
        message = (
            f"{error}\nRename or join classes with `cahqp convert {checkpoint} FILE --classes ...`, and give the file: "
            f"--{role} FILE."
        )
        raise WeightsError(message) from error
    return Start(output, origin, tuple(classes), note, trained=False)
