"""Options of `cahqp convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ArchitectureHints:
    """Settings that the shapes of a checkpoint's tensors do not determine.

    Attributes:
        size: Height and width that an RT-DETR was trained for. By default those of its anchors, or 640,640.
        queries: Number of queries of an RT-DETR; by default that of its config.json, or 300.
        heads: Attention heads; 8 in every published checkpoint.
        sampling: `discrete` for the dsp models of RT-DETRv2, whose files do not differ from the others.
    """

    size: tuple[int, int] | None = None
    queries: int | None = None
    heads: int = 8
    sampling: Literal["bilinear", "discrete"] = "bilinear"


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(ArchitectureHints):
    """Options of `cahqp convert`.

    Attributes:
        weights: The checkpoint, read without executing its content: .pth, .pt, .bin, .safetensors, or the folder of a
            Hugging Face model. Supported are DINO of its authors and of detrex, and RT-DETR of its authors and of
            transformers.
        output: The model file to write, such as coco.safetensors.
        classes: Classes of the model file, such as person,vehicle=car+bus+truck. A class of the checkpoint keeps its
            weights, a union scores as the best of its parts, and others start untrained. By default all classes of the
            checkpoint.
        names: Classes of the checkpoint's outputs, in order, if they are not COCO's.
    """

    weights: Path
    output: Path
    classes: str | None = None
    names: str | None = None
