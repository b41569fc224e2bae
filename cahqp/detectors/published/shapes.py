"""Reads an architecture's settings off the shapes of its tensors, which are under our names already."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cahqp.detectors.rtdetr import RESNET_VD
from cahqp.errors import WeightsError

Tensors = dict[str, Tensor]
# Tensors, settings, and what a user should know.
Read = tuple[Tensors, dict[str, Any], list[str]]

RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
WIDTHS = [64, 128, 256, 512]
HEADS = 8  # of every published model; shapes do not tell it


@dataclass(frozen=True)
class Asked:
    """What shapes cannot tell, where the user or a `config.json` does.

    Attributes:
        heads: Attention heads.
        queries: Of RT-DETR, whose queries have no weights.
        size: Height and width that an RT-DETR was trained for.
        sampling: Of RT-DETRv2's decoder.
        offset_scale: Of RT-DETRv2's decoder.
    """

    heads: int = HEADS
    queries: int | None = None
    size: tuple[int, int] | None = None
    sampling: str = "bilinear"
    offset_scale: float = 0.5


def _count(tensors: Tensors, prefix: str) -> int:
    """Return how many numbers follow a prefix, such as layers."""
    found = {match[1] for name in tensors if (match := re.match(re.escape(prefix) + r"(\d+)\.", name))}
    return len(found)


def _points(rows: int, heads: int, levels: int, what: str) -> int:
    if rows % (heads * levels):
        message = f"{what} has {rows} rows, which {heads} heads on {levels} levels cannot share. Give --heads."
        raise WeightsError(message)
    return rows // (heads * levels)


def _check_heads(tensors: Tensors, wanted: int) -> None:
    """Refuse a file that lacks a whole layer: without this it would pass for a smaller model."""
    for kind, letter in (("class", "a class head"), ("box", "a box head")):
        found = _count(tensors, f"{kind}_heads.")
        if found != wanted:
            message = (
                f"It has {found} times {letter}, and decoder layers for {wanted}: some of its weights are missing."
            )
            raise WeightsError(message)


def _share_heads(tensors: Tensors, layers: int) -> bool:
    """Say whether all layers have the same heads."""
    return all(
        torch.equal(tensors[f"{kind}.{layer}.{rest}"], value)
        for kind in ("class_heads", "box_heads")
        for name, value in tensors.items()
        if name.startswith(f"{kind}.0.")
        for rest in [name.removeprefix(f"{kind}.0.")]
        for layer in range(1, layers)
    )


def _resnet(tensors: Tensors) -> dict[str, Any]:
    """Return the timm name of a ResNet and, where it is narrower or wider than published, its channels."""
    prefix = "backbone.body.layer"
    depths = tuple(_count(tensors, f"{prefix}{stage}.") for stage in (1, 2, 3, 4))
    bottleneck = f"{prefix}1.0.conv3.weight" in tensors
    if (depths, bottleneck) not in RESNETS:
        message = f"The backbone has {depths} blocks, which is no ResNet of 18, 34, 50, 101 or 152 layers."
        raise WeightsError(message)
    found: dict[str, Any] = {"backbone": RESNETS[depths, bottleneck]}
    channels = [len(tensors[f"{prefix}{stage}.0.conv1.weight"]) for stage in (1, 2, 3, 4)]
    return found if channels == WIDTHS else {**found, "backbone_options": {"channels": channels}}


def _dino_settings(tensors: Tensors, asked: Asked) -> dict[str, Any]:
    levels, dim = tensors["level_embed"].shape
    maps = sum(
        1 for name, t in tensors.items() if re.fullmatch(r"input_proj\.\d+\.0\.weight", name) and t.shape[2] == 1
    )
    offsets = tensors["encoder.0.self_attn.attention_weights.weight"]
    return {
        **_resnet(tensors),
        "strides": [4, 8, 16, 32][-maps:],
        "levels": levels,
        "dim": dim,
        "heads": asked.heads,
        "points": _points(len(offsets), asked.heads, levels, "The encoder's attention"),
        "encoder_layers": _count(tensors, "encoder."),
        "decoder_layers": _count(tensors, "decoder."),
        "ffn_dim": len(tensors["encoder.0.ffn.linear1.weight"]),
        "queries": len(tensors["query_content.weight"]),
        "frozen_stages": 2,  # stem and first stage, as published
    }


def read_official(tensors: Tensors, _: Tensors, asked: Asked) -> Read:
    """Read official DINO, whose layers may share their heads."""
    settings = _dino_settings(tensors, asked)
    _check_heads(tensors, settings["decoder_layers"])
    shared = _share_heads(tensors, settings["decoder_layers"])
    if shared:
        tensors = {n: t for n, t in tensors.items() if not re.match(r"(class|box)_heads\.[1-9]", n)}
    return tensors, {**settings, "shared_heads": shared}, []


def read_detrex(tensors: Tensors, _: Tensors, asked: Asked) -> Read:
    """Read detrex's DINO, whose proposals have the last of its heads."""
    maps = _count(tensors, "input_proj.")
    layers = _count(tensors, "decoder.")
    _check_heads(tensors, layers + 1)
    own: Tensors = {}
    for name, tensor in tensors.items():
        name = re.sub(r"input_proj\.extra(\d+)", lambda match: f"input_proj.{maps + int(match[1])}", name)
        name = re.sub(rf"class_heads\.{layers}\.", "proposal_class.", name)
        own[re.sub(rf"box_heads\.{layers}\.", "proposal_box.", name)] = tensor
    settings = _dino_settings(own, asked)
    detrex: dict[str, Any] = {
        "frozen_stages": 1,
        "shared_heads": False,
        "position_temperature": 10000.0,
        "position_offset": -0.5,
        "label_noise": 0.2,
    }
    return own, {**settings, **detrex}, []


def read_rtdetr(tensors: Tensors, theirs: Tensors, asked: Asked) -> Read:
    """Read RT-DETR, first or second version, of its authors or of transformers."""
    stages = "backbone.stages."
    depths = tuple(_count(tensors, f"{stages}{stage}.") for stage in range(4))
    bottleneck = f"{stages}0.0.branch.2.conv.weight" in tensors
    backbone = next((name for name, made in RESNET_VD.items() if made == (depths, bottleneck)), None)
    if backbone is None:
        message = f"The backbone has {depths} blocks, which is no ResNet-vd of 18, 34, 50 or 101 layers."
        raise WeightsError(message)
    width = len(tensors["encoder.input_proj.0.conv.weight"])
    expansion = len(tensors["encoder.top_down.0.conv1.conv.weight"]) / width
    layers = _count(tensors, "decoder.")
    notes = []
    queries = asked.queries or 300
    size, told = _rtdetr_size(theirs, asked)
    notes += told
    settings: dict[str, Any] = {
        "backbone": backbone,
        "backbone_width": len(tensors["backbone.stem.2.conv.weight"]),
        "dim": len(tensors["decoder_proj.0.conv.weight"]),
        "heads": asked.heads,
        "points": _rtdetr_points(tensors, theirs, asked),
        "decoder_layers": layers,
        "ffn_dim": len(tensors["decoder.0.ffn.linear1.weight"]),
        "encoder_dim": width,
        "encoder_ffn_dim": len(tensors["encoder.ffn.linear1.weight"]),
        "fusion_blocks": _count(tensors, "encoder.top_down.0.blocks."),
        "expansion": expansion,
        "queries": queries,
        "size": size,
        "sampling": asked.sampling,
        "offset_scale": asked.offset_scale,
    }
    medium = bottleneck and expansion == 0.5 and layers == 6 and "decoder.dec_score_head.0.weight" in theirs
    if medium:
        settings["eval_layer"] = 2
        notes.append("RT-DETR-R50-m: the third of its six decoder layers answers, as it was published.")
    return tensors, settings, notes


def _rtdetr_points(tensors: Tensors, theirs: Tensors, asked: Asked) -> int | list[int]:
    """Return the points per level; the second version keeps one over their number for each of them."""
    levels = _count(tensors, "decoder_proj.")
    rows = len(tensors["decoder.0.cross_attn.attention_weights.weight"])
    told = theirs.get("decoder.decoder.layers.0.cross_attn.num_points_scale")
    if told is None:
        return _points(rows, asked.heads, levels, "The decoder's attention")
    points, left = [], [round(1 / share) for share in told.tolist()]
    while left:
        points.append(left[0])
        left = left[left[0] :]
    if len(points) != levels or sum(points) * asked.heads != rows:
        message = (
            f"num_points_scale tells {points} points, which {rows} rows of {asked.heads} heads do not. Give --heads."
        )
        raise WeightsError(message)
    return points[0] if len(set(points)) == 1 else points


def _rtdetr_size(theirs: Tensors, asked: Asked) -> tuple[tuple[int, int], list[str]]:
    """Return the size it was trained for; the second version keeps its anchors, whose number tells a square's side."""
    anchors = theirs.get("decoder.anchors")
    if asked.size is not None or anchors is None:
        return asked.size or (640, 640), []
    cells = anchors.shape[1]
    side = round(math.sqrt(cells / 21)) * 32  # a square of 32 n pixels has (16 + 4 + 1) n^2 cells
    if side * side // 1024 * 21 != cells:
        message = f"It was made for images with {cells} anchors, which no square has. Give --size '[HEIGHT,WIDTH]'."
        raise WeightsError(message)
    return (side, side), [f"Made for {side}x{side} pixels, as its anchors say."] if side != 640 else []
