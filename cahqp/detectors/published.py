"""Names of the published checkpoints, and what they are called here."""

from __future__ import annotations

import re

from torch import Tensor

Rules = list[tuple[str, str]]

# IDEA-Research/DINO. The heads stand there once per layer and twice over; one copy is read.
DINO_OFFICIAL: Rules = [
    (r"backbone\.0\.body\.(.*)", r"backbone.body.\1"),
    (r"input_proj\.(.*)", r"input_proj.\1"),
    (r"transformer\.level_embed", "level_embed"),
    (r"transformer\.encoder\.layers\.(\d+)\.self_attn\.(.*)", r"encoder.\1.self_attn.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.norm1\.(.*)", r"encoder.\1.norm.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.(linear[12])\.(.*)", r"encoder.\1.ffn.\2.\3"),
    (r"transformer\.encoder\.layers\.(\d+)\.norm2\.(.*)", r"encoder.\1.ffn.norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.cross_attn\.(.*)", r"decoder.\1.cross_attn.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm1\.(.*)", r"decoder.\1.norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.self_attn\.(.*)", r"decoder.\1.self_attn.attention.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm2\.(.*)", r"decoder.\1.self_attn.norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.(linear[12])\.(.*)", r"decoder.\1.ffn.\2.\3"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm3\.(.*)", r"decoder.\1.ffn.norm.\2"),
    (r"transformer\.decoder\.norm\.(.*)", r"decoder_norm.\1"),
    (r"transformer\.decoder\.ref_point_head\.(.*)", r"query_position.\1"),
    (r"transformer\.tgt_embed\.weight", "query_content.weight"),
    (r"transformer\.enc_output\.(.*)", r"proposal_proj.\1"),
    (r"transformer\.enc_output_norm\.(.*)", r"proposal_norm.\1"),
    (r"transformer\.enc_out_class_embed\.(.*)", r"proposal_class.\1"),
    (r"transformer\.enc_out_bbox_embed\.(.*)", r"proposal_box.\1"),
    (r"label_enc\.weight", "label_content.weight"),
    (r"(?:transformer\.decoder\.)?class_embed\.\d+\.(.*)", r"class_heads.0.\1"),
    (r"(?:transformer\.decoder\.)?bbox_embed\.\d+\.(.*)", r"box_heads.0.\1"),
]

_FUSIONS = {"fpn_blocks": "top_down", "pan_blocks": "bottom_up"}

# lyuwenyu/RT-DETR, both versions: v2 only renames the projections.
RTDETR_PUBLISHED: Rules = [
    (r"backbone\.conv1\.conv1_1\.(.*)", r"backbone.stem.0.\1"),
    (r"backbone\.conv1\.conv1_2\.(.*)", r"backbone.stem.1.\1"),
    (r"backbone\.conv1\.conv1_3\.(.*)", r"backbone.stem.2.\1"),
    (r"backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.branch2a\.(.*)", r"backbone.stages.\1.\2.branch.0.\3"),
    (r"backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.branch2b\.(.*)", r"backbone.stages.\1.\2.branch.1.\3"),
    (r"backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.branch2c\.(.*)", r"backbone.stages.\1.\2.branch.2.\3"),
    (
        r"backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.short\.conv\.((?:conv|norm)\..*)",
        r"backbone.stages.\1.\2.shortcut.\3",
    ),
    (r"backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.short\.((?:conv|norm)\..*)", r"backbone.stages.\1.\2.shortcut.\3"),
    (r"encoder\.input_proj\.(\d+)\.(?:0|conv)\.(.*)", r"encoder.input_proj.\1.conv.\2"),
    (r"encoder\.input_proj\.(\d+)\.(?:1|norm)\.(.*)", r"encoder.input_proj.\1.norm.\2"),
    (r"encoder\.encoder\.0\.layers\.0\.self_attn\.(.*)", r"encoder.attention.attention.\1"),
    (r"encoder\.encoder\.0\.layers\.0\.norm1\.(.*)", r"encoder.attention.norm.\1"),
    (r"encoder\.encoder\.0\.layers\.0\.(linear[12])\.(.*)", r"encoder.ffn.\1.\2"),
    (r"encoder\.encoder\.0\.layers\.0\.norm2\.(.*)", r"encoder.ffn.norm.\1"),
    (r"encoder\.lateral_convs\.(.*)", r"encoder.lateral.\1"),
    (r"encoder\.downsample_convs\.(.*)", r"encoder.downsample.\1"),
    *[
        rule
        for theirs, ours in _FUSIONS.items()
        for rule in (
            (rf"encoder\.{theirs}\.(\d+)\.bottlenecks\.(\d+)\.conv1\.(.*)", rf"encoder.{ours}.\1.blocks.\2.conv3.\3"),
            (rf"encoder\.{theirs}\.(\d+)\.bottlenecks\.(\d+)\.conv2\.(.*)", rf"encoder.{ours}.\1.blocks.\2.conv1.\3"),
            (rf"encoder\.{theirs}\.(\d+)\.(conv[123])\.(.*)", rf"encoder.{ours}.\1.\2.\3"),
        )
    ],
    (r"decoder\.input_proj\.(.*)", r"decoder_proj.\1"),
    (r"decoder\.decoder\.layers\.(\d+)\.self_attn\.(.*)", r"decoder.\1.self_attn.attention.\2"),
    (r"decoder\.decoder\.layers\.(\d+)\.norm1\.(.*)", r"decoder.\1.self_attn.norm.\2"),
    (r"decoder\.decoder\.layers\.(\d+)\.cross_attn\.(.*)", r"decoder.\1.cross_attn.\2"),
    (r"decoder\.decoder\.layers\.(\d+)\.norm2\.(.*)", r"decoder.\1.norm.\2"),
    (r"decoder\.decoder\.layers\.(\d+)\.(linear[12])\.(.*)", r"decoder.\1.ffn.\2.\3"),
    (r"decoder\.decoder\.layers\.(\d+)\.norm3\.(.*)", r"decoder.\1.ffn.norm.\2"),
    (r"decoder\.denoising_class_embed\.weight", "label_content.weight"),
    (r"decoder\.query_pos_head\.(.*)", r"query_position.\1"),
    (r"decoder\.enc_output\.(?:0|proj)\.(.*)", r"proposal_proj.\1"),
    (r"decoder\.enc_output\.(?:1|norm)\.(.*)", r"proposal_norm.\1"),
    (r"decoder\.enc_score_head\.(.*)", r"proposal_class.\1"),
    (r"decoder\.enc_bbox_head\.(.*)", r"proposal_box.\1"),
    (r"decoder\.dec_score_head\.(.*)", r"class_heads.\1"),
    (r"decoder\.dec_bbox_head\.(.*)", r"box_heads.\1"),
]


def rename(state: dict[str, Tensor], rules: Rules) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors under our names, and the names that no rule knows."""
    compiled = [(re.compile(pattern), ours) for pattern, ours in rules]
    renamed, unknown = {}, []
    for name, tensor in state.items():
        for pattern, ours in compiled:
            match = pattern.fullmatch(name)
            if match:
                renamed[match.expand(ours)] = tensor
                break
        else:
            unknown.append(name)
    return renamed, unknown
