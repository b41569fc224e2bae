"""transformers' RT-DETR at the architecture of one of ours, to be timed beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cahqp.detectors.backbones import TimmBackbone
from cahqp.detectors.base import Detector
from cahqp.detectors.rtdetr import RESNET_VD, RTDETR

FUSION_BLOCKS = 3  # transformers knows no other number, but more can be taken out


class _SameBackbone(nn.Module):
    """A timm backbone where transformers expects its own: both sides then run the same code there."""

    def __init__(self, backbone: TimmBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor, _: Tensor) -> list[tuple[Tensor, None]]:
        """Return maps, and no masks, which RT-DETR does not read."""
        return [(one, None) for one in self.backbone(images)]


def reference_of(detector: Detector) -> tuple[Any, str]:
    """Return transformers' model with random weights, or `None`, and what it is or why there is none."""
    try:
        import transformers
    except ModuleNotFoundError:
        return None, "transformers is not installed: pip install 'cahqp[hf]'"
    why = _unlike(detector)
    if why:
        return None, why
    config = transformers.RTDetrConfig(**_settings(detector, transformers))
    model = transformers.RTDetrForObjectDetection(config)
    settings = detector.settings
    config.num_denoising = settings["denoising"]
    encoder = model.model.encoder
    for block in [*encoder.fpn_blocks, *encoder.pan_blocks]:
        block.bottlenecks = block.bottlenecks[: settings["fusion_blocks"]]
    if settings["backbone"] not in RESNET_VD:
        model.model.backbone = _SameBackbone(_timm(settings))
    own, theirs = (sum(p.numel() for p in m.parameters()) for m in (detector, model))
    if own != theirs:
        return None, f"transformers' RT-DETR comes out with {theirs:,} parameters, and this one has {own:,}"
    return model, f"transformers {transformers.__version__}, {theirs:,} parameters as ours"


def _unlike(detector: Detector) -> str:
    """Say what keeps transformers' RT-DETR from being this detector; nothing where it can be."""
    if not isinstance(detector, RTDETR):
        return f"the reference is transformers' RT-DETR, and this is a {type(detector).__name__}"
    settings = detector.settings
    plain = {"members": None, "eval_layer": None, "sampling": "bilinear", "offset_scale": 0.5}
    other = [name for name, value in plain.items() if settings[name] != value]
    other += ["points"] * (not isinstance(settings["points"], int))
    other += ["fusion_blocks"] * (settings["fusion_blocks"] > FUSION_BLOCKS)
    return f"transformers' RT-DETR has no {', '.join(other)} like this one's" if other else ""


def _timm(settings: dict[str, Any]) -> TimmBackbone:
    return TimmBackbone(
        settings["backbone"], (8, 16, 32), freeze_norm=settings["freeze_norm"], options=settings["backbone_options"]
    )


def _settings(detector: Detector, transformers: Any) -> dict[str, Any]:
    """Return the arguments of transformers' configuration."""
    given = detector.settings
    depths, bottleneck = RESNET_VD.get(given["backbone"], ((2, 2, 2, 2), False))
    width = given["backbone_width"]
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=width,
        hidden_sizes=[width * 2**stage * (4 if bottleneck else 1) for stage in range(4)],
        depths=list(depths),
        layer_type="bottleneck" if bottleneck else "basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    backbone_of: Any = detector.backbone
    maps: list[int] = backbone_of.channels
    if given["backbone"] not in RESNET_VD:  # it is put in the place of this one, whose maps must have its widths
        backbone.hidden_sizes = [maps[0], *maps]
    inner = given["encoder_dim"] or given["dim"]
    return {
        "backbone_config": backbone,
        "freeze_backbone_batch_norms": False,  # as ours: the same work
        "num_labels": len(detector.classes),
        "d_model": given["dim"],
        "num_queries": given["queries"],
        "dropout": given["dropout"],
        "encoder_in_channels": list(maps),
        "encoder_hidden_dim": inner,
        "encoder_ffn_dim": given["encoder_ffn_dim"] or given["ffn_dim"],
        "encoder_attention_heads": given["heads"],
        "hidden_expansion": given["expansion"],
        "decoder_in_channels": [inner] * 3,
        "decoder_ffn_dim": given["ffn_dim"],
        "decoder_layers": given["decoder_layers"],
        "decoder_attention_heads": given["heads"],
        "decoder_n_points": given["points"],
        "num_denoising": given["denoising"] or 1,  # or it would have no table of labels, which ours always has
        "label_noise_ratio": given["label_noise"],
        "box_noise_scale": given["box_noise"],
    }


def their_labels(targets: Any, height: int, width: int) -> list[dict[str, Tensor]]:
    """Return targets as transformers takes them: cxcywh in 0..1 of images of one size."""
    found = []
    for one in targets:
        low, high = one.boxes[:, :2], one.boxes[:, 2:]
        boxes = torch.cat([(low + high) / 2, high - low], 1) / one.boxes.new_tensor([width, height] * 2)
        found.append({"class_labels": one.labels, "boxes": boxes})
    return found
