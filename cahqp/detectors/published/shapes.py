"""Detector settings from the shapes of a checkpoint's tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cahqp.detectors.published.checkpoint_file import CheckpointFile
from cahqp.detectors.published.options import ArchitectureHints
from cahqp.detectors.rtdetr import RESNET_VD
from cahqp.errors import WeightsError

Tensors = dict[str, Tensor]

RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
WIDTHS = [64, 128, 256, 512]


@dataclass
class Architecture:
    """Weights under the names of cahqp with the settings of their detector.

    Attributes:
        tensors: By the names of cahqp.
        settings: Arguments of the detector, without the classes.
        notes: Lines for the user.
    """

    tensors: Tensors
    settings: dict[str, Any]
    notes: list[str]


def _count(tensors: Tensors, prefix: str) -> int:
    """Return how many numbers, such as layer indices, follow a prefix."""
    return len({match[1] for name in tensors if (match := re.match(re.escape(prefix) + r"(\d+)\.", name))})


def _points(rows: int, heads: int, levels: int, module: str) -> int:
    if rows % (heads * levels):
        message = f"{module} has {rows} rows, not a multiple of {heads} heads times {levels} levels. Give --heads."
        raise WeightsError(message)
    return rows // (heads * levels)


def _check_heads(tensors: Tensors, expected: int) -> None:
    """Check that no layer is missing; without this check the file would pass for a smaller model."""
    for kind in ("class", "box"):
        count = _count(tensors, f"{kind}_heads.")
        if count != expected:
            message = (
                f"It has {count} {kind} heads, and decoder layers for {expected}: some of its weights are missing."
            )
            raise WeightsError(message)


def _has_shared_heads(tensors: Tensors, layers: int) -> bool:
    """Return whether all layers have the same heads."""
    first = {n: t for n, t in tensors.items() if re.match(r"(class|box)_heads\.0\.", n)}
    return all(
        torch.equal(tensors[name.replace(".0.", f".{layer}.", 1)], tensor)
        for name, tensor in first.items()
        for layer in range(1, layers)
    )


def _resnet(tensors: Tensors) -> dict[str, Any]:
    """Return the timm name of a ResNet, and its channels if they are not the published ones."""
    prefix = "backbone.body.layer"
    depths = tuple(_count(tensors, f"{prefix}{stage}.") for stage in (1, 2, 3, 4))
    bottleneck = f"{prefix}1.0.conv3.weight" in tensors
    if (depths, bottleneck) not in RESNETS:
        message = f"The backbone has {depths} blocks, which is no ResNet of 18, 34, 50, 101 or 152 layers."
        raise WeightsError(message)
    settings: dict[str, Any] = {"backbone": RESNETS[depths, bottleneck]}
    channels = [len(tensors[f"{prefix}{stage}.0.conv1.weight"]) for stage in (1, 2, 3, 4)]
    return settings if channels == WIDTHS else {**settings, "backbone_options": {"channels": channels}}


def _dino_settings(tensors: Tensors, hints: ArchitectureHints) -> dict[str, Any]:
    levels, dim = tensors["level_embed"].shape
    projections = [t for name, t in tensors.items() if re.fullmatch(r"input_proj\.\d+\.0\.weight", name)]
    maps = sum(weight.shape[2] == 1 for weight in projections)
    rows = len(tensors["encoder.0.self_attn.attention_weights.weight"])
    return {
        **_resnet(tensors),
        "strides": [4, 8, 16, 32][-maps:],
        "levels": levels,
        "dim": dim,
        "heads": hints.heads,
        "points": _points(rows, hints.heads, levels, "The encoder's attention"),
        "encoder_layers": _count(tensors, "encoder."),
        "decoder_layers": _count(tensors, "decoder."),
        "ffn_dim": len(tensors["encoder.0.ffn.linear1.weight"]),
        "queries": len(tensors["query_content.weight"]),
        "frozen_stages": 2,  # stem and first stage, as published
    }


def read_official(tensors: Tensors, _: CheckpointFile, hints: ArchitectureHints) -> Architecture:
    """Read official DINO, whose layers may share their heads."""
    settings = _dino_settings(tensors, hints)
    _check_heads(tensors, settings["decoder_layers"])
    shared = _has_shared_heads(tensors, settings["decoder_layers"])
    if shared:
        tensors = {n: t for n, t in tensors.items() if not re.match(r"(class|box)_heads\.[1-9]", n)}
    return Architecture(tensors, {**settings, "shared_heads": shared}, [])


def read_detrex(tensors: Tensors, _: CheckpointFile, hints: ArchitectureHints) -> Architecture:
    """Read detrex's DINO, whose last heads belong to the proposals."""
    maps, layers = _count(tensors, "input_proj."), _count(tensors, "decoder.")
    _check_heads(tensors, layers + 1)
    own: Tensors = {}
    for name, tensor in tensors.items():
        name = re.sub(r"input_proj\.extra(\d+)", lambda match: f"input_proj.{maps + int(match[1])}", name)
        own[re.sub(rf"(class|box)_heads\.{layers}\.", r"proposal_\1.", name)] = tensor
    detrex: dict[str, Any] = {
        "frozen_stages": 1,
        "shared_heads": False,
        "position_temperature": 10000.0,
        "position_offset": -0.5,
        "label_noise": 0.2,
    }
    return Architecture(own, {**_dino_settings(own, hints), **detrex}, [])


def read_rtdetr(tensors: Tensors, file: CheckpointFile, hints: ArchitectureHints) -> Architecture:
    """Read RT-DETR, first or second version, of its authors or of transformers."""
    depths = tuple(_count(tensors, f"backbone.stages.{stage}.") for stage in range(4))
    bottleneck = "backbone.stages.0.0.branch.2.conv.weight" in tensors
    backbone = next((name for name, layers in RESNET_VD.items() if layers == (depths, bottleneck)), None)
    if backbone is None:
        message = f"The backbone has {depths} blocks, which is no ResNet-vd of 18, 34, 50 or 101 layers."
        raise WeightsError(message)
    width = len(tensors["encoder.input_proj.0.conv.weight"])
    size, notes = _rtdetr_size(file.tensors, hints.size or _processed_size(file.processor))
    settings: dict[str, Any] = {
        "backbone": backbone,
        "backbone_width": len(tensors["backbone.stem.2.conv.weight"]),
        "dim": len(tensors["decoder_proj.0.conv.weight"]),
        "heads": hints.heads,
        "points": _rtdetr_points(tensors, file.tensors, hints.heads),
        "decoder_layers": _count(tensors, "decoder."),
        "ffn_dim": len(tensors["decoder.0.ffn.linear1.weight"]),
        "encoder_dim": width,
        "encoder_ffn_dim": len(tensors["encoder.ffn.linear1.weight"]),
        "fusion_blocks": _count(tensors, "encoder.top_down.0.blocks."),
        "expansion": len(tensors["encoder.top_down.0.conv1.conv.weight"]) / width,
        "queries": hints.queries or 300,
        "size": size,
        "sampling": hints.sampling,
        "offset_scale": file.config.get("decoder_offset_scale", 0.5),
    }
    if file.processor.get("do_normalize"):
        settings |= {"mean": _channels(file.processor, "image_mean"), "std": _channels(file.processor, "image_std")}
        notes.append("Normalises images as its preprocessor_config.json says.")
    six_layers = (settings["expansion"], settings["decoder_layers"]) == (0.5, 6)
    if bottleneck and six_layers and "decoder.dec_score_head.0.weight" in file.tensors:
        settings["eval_layer"] = 2
        notes.append("RT-DETR-R50-m: predictions come from the third of its six decoder layers, as published.")
    return Architecture(tensors, settings, notes)


def _rtdetr_points(tensors: Tensors, published: Tensors, heads: int) -> int | list[int]:
    """Return the points per level. The second version stores, for each point, one over the count of its level."""
    levels = _count(tensors, "decoder_proj.")
    rows = len(tensors["decoder.0.cross_attn.attention_weights.weight"])
    scale = published.get("decoder.decoder.layers.0.cross_attn.num_points_scale")
    if scale is None:
        return _points(rows, heads, levels, "The decoder's attention")
    points, remaining = [], [round(1 / share) for share in scale.tolist()]
    while remaining:
        points.append(remaining[0])
        remaining = remaining[remaining[0] :]
    if len(points) != levels or sum(points) * heads != rows:
        message = f"num_points_scale has {points} points, which do not fit {rows} rows of {heads} heads. Give --heads."
        raise WeightsError(message)
    return points[0] if len(set(points)) == 1 else points


def _processed_size(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width of an image processor of transformers, `None` without one.

    Raises:
        WeightsError: It resizes images in another way.
    """
    size = processor.get("size")
    if size is None or not processor.get("do_resize", True):
        return None
    height, width = (size.get(side) if isinstance(size, dict) else None for side in ("height", "width"))
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        message = f"Its preprocessor_config.json resizes images to {size}. Set height and width in it, or give --size."
        raise WeightsError(message)
    return height, width


def _channels(processor: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    """Return a value per channel of an image processor.

    Raises:
        WeightsError: It has no three numbers.
    """
    values = processor.get(key)
    if not isinstance(values, list) or len(values) != 3 or not all(type(value) in (int, float) for value in values):
        message = f"Its preprocessor_config.json normalises, but {key} is {values}. Write three numbers."
        raise WeightsError(message)
    return float(values[0]), float(values[1]), float(values[2])


def _rtdetr_size(published: Tensors, given: tuple[int, int] | None) -> tuple[tuple[int, int], list[str]]:
    """Return the training size and a note. The second version stores anchors, whose number gives a square's side."""
    anchors = published.get("decoder.anchors")
    if given is not None or anchors is None:
        return given or (640, 640), []
    cells = anchors.shape[1]
    side = round(math.sqrt(cells / 21)) * 32  # a square of 32 n pixels has (16 + 4 + 1) n^2 cells
    if side * side // 1024 * 21 != cells:
        message = f"It has {cells} anchors, which fit no square image. Give --size '[HEIGHT,WIDTH]'."
        raise WeightsError(message)
    return (side, side), [f"Made for {side}x{side} pixels, according to its anchors."] if side != 640 else []
