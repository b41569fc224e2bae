"""DEIMv2: corrections of the class in transformers 5.23, and the places of its modules.

The class differs from the published model (arXiv 2509.20787, Intellindust-AI-Lab/DEIMv2) in three places. Without the
corrections, the published weights of the size femto lose a quarter of their detections.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from cahqp.detectors.huggingface.families import Family

UNUSED = "model.enc_output."
"""Prefix of weights that the class of transformers has and the published model lacks."""


def place_modules(family: Family, config: Any) -> Family:
    """Return the family with the module paths of this configuration; they depend on encoder and backbone."""
    if config.backbone_config.model_type == "dinov3_vit":
        return replace(family, backbone="conv_encoder.backbone", projections="conv_encoder.fusion_proj")
    if config.encoder_type != "lite":
        return replace(family, projections="conv_encoder.encoder_input_proj")
    return family


def correct(model: Any) -> None:
    """Make a new `Deimv2ForObjectDetection` compute the published function, in place.

    The class has a linear layer and a LayerNorm before the choice of queries; ReLU instead of SiLU in its MLPs; and new
    query positions in each decoder layer, where the published decoder keeps those of the first boxes.
    """
    base = model.model
    base.enc_output = nn.Identity()
    for module in model.modules():
        if type(module) is type(base.enc_bbox_head):
            module.act = nn.SiLU()
    base.decoder.register_forward_pre_hook(_forget_position)
    base.decoder.register_forward_hook(_forget_position, always_call=True)  # a kept graph would prevent copies
    base.decoder.query_pos_head.register_forward_hook(_repeat_position)


def _forget_position(decoder: Any, *_: Any) -> None:
    decoder.query_pos_head.first_position = None


def _repeat_position(head: Any, _: Any, position: Tensor) -> Tensor:
    """Return the position of the first call since the decoder started."""
    if head.first_position is None:
        head.first_position = position
    first: Tensor = head.first_position
    return first
