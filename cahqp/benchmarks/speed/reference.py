"""transformers' RT-DETR with the architecture of one of our RT-DETR detectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cahqp.detectors.backbones import TimmBackbone
from cahqp.detectors.base import Detector
from cahqp.detectors.rtdetr import RESNET_VD, RTDETR

FUSION_BLOCKS = 3  # fixed in transformers; blocks can only be removed


class _SharedBackbone(nn.Module):
    """A timm backbone with the interface of transformers', so that both models run the same backbone code."""

    def __init__(self, backbone: TimmBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor, _: Tensor) -> list[tuple[Tensor, None]]:
        """Return feature maps without masks, which RT-DETR does not read."""
        return [(features, None) for features in self.backbone(images)]


def build_reference(detector: Detector) -> tuple[Any, str]:
    """Return transformers' model with random weights and its description, or `None` and the reason."""
    try:
        import transformers
    except ModuleNotFoundError:
        return None, "transformers is not installed: pip install 'cahqp[hf]'"
    reason = _difference(detector)
    if reason:
        return None, reason
    settings = detector.settings
    config = transformers.RTDetrConfig(**_config_settings(detector, transformers))
    model = transformers.RTDetrForObjectDetection(config)
    config.num_denoising = settings["denoising"]
    encoder = model.model.encoder
    for block in [*encoder.fpn_blocks, *encoder.pan_blocks]:
        block.bottlenecks = block.bottlenecks[: settings["fusion_blocks"]]
    if settings["backbone"] not in RESNET_VD:
        options = {"freeze_norm": settings["freeze_norm"], "options": settings["backbone_options"]}
        model.model.backbone = _SharedBackbone(TimmBackbone(settings["backbone"], (8, 16, 32), **options))
    size, reference_size = (sum(p.numel() for p in m.parameters()) for m in (detector, model))
    if size != reference_size:
        return None, f"transformers' RT-DETR has {reference_size:,} parameters, this detector has {size:,}"
    return model, f"transformers {transformers.__version__}, {reference_size:,} parameters as ours"


def _difference(detector: Detector) -> str:
    """Return why transformers' RT-DETR cannot have this detector's architecture, or an empty string."""
    if not isinstance(detector, RTDETR):
        return f"the reference is transformers' RT-DETR, and this is a {type(detector).__name__}"
    settings = detector.settings
    fixed = {"members": None, "eval_layer": None, "sampling": "bilinear", "offset_scale": 0.5}
    different = [name for name, value in fixed.items() if settings[name] != value]
    different += ["points"] * (not isinstance(settings["points"], int))
    different += ["fusion_blocks"] * (settings["fusion_blocks"] > FUSION_BLOCKS)
    return f"transformers' RT-DETR does not support this detector's {', '.join(different)}" if different else ""


def _config_settings(detector: Detector, transformers: Any) -> dict[str, Any]:
    """Return the arguments of transformers' configuration."""
    settings = detector.settings
    depths, bottleneck = RESNET_VD.get(settings["backbone"], ((2, 2, 2, 2), False))
    width = settings["backbone_width"]
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=width,
        hidden_sizes=[width * 2**stage * (4 if bottleneck else 1) for stage in range(4)],
        depths=list(depths),
        layer_type="bottleneck" if bottleneck else "basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    own_backbone: Any = detector.backbone
    channels: list[int] = own_backbone.channels
    if settings["backbone"] not in RESNET_VD:  # a placeholder with the widths of the shared backbone
        backbone.hidden_sizes = [channels[0], *channels]
    encoder_dim = settings["encoder_dim"] or settings["dim"]
    return {
        "backbone_config": backbone,
        "freeze_backbone_batch_norms": False,  # as ours: the same work
        "num_labels": len(detector.classes),
        "d_model": settings["dim"],
        "num_queries": settings["queries"],
        "dropout": settings["dropout"],
        "encoder_in_channels": list(channels),
        "encoder_hidden_dim": encoder_dim,
        "encoder_ffn_dim": settings["encoder_ffn_dim"] or settings["ffn_dim"],
        "encoder_attention_heads": settings["heads"],
        "hidden_expansion": settings["expansion"],
        "decoder_in_channels": [encoder_dim] * 3,
        "decoder_ffn_dim": settings["ffn_dim"],
        "decoder_layers": settings["decoder_layers"],
        "decoder_attention_heads": settings["heads"],
        "decoder_n_points": settings["points"],
        "num_denoising": settings["denoising"] or 1,  # 0 would omit the label embedding, which ours always has
        "label_noise_ratio": settings["label_noise"],
        "box_noise_scale": settings["box_noise"],
    }


def reference_labels(targets: Any, height: int, width: int) -> list[dict[str, Tensor]]:
    """Return targets in transformers' format: cxcywh boxes in 0..1 of images of one size."""
    labels = []
    for each in targets:
        low, high = each.boxes[:, :2], each.boxes[:, 2:]
        boxes = torch.cat([(low + high) / 2, high - low], 1) / each.boxes.new_tensor([width, height] * 2)
        labels.append({"class_labels": each.labels, "boxes": boxes})
    return labels
