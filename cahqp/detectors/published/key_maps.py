"""Names of the published checkpoints, and what they are called here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Rules = list[tuple[str, str]]

# IDEA-Research/DINO. The heads stand there once per layer, and twice over.
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
    (r"(?:transformer\.decoder\.)?class_embed\.(\d+)\.(.*)", r"class_heads.\1.\2"),
    (r"(?:transformer\.decoder\.)?bbox_embed\.(\d+)\.(.*)", r"box_heads.\1.\2"),
]

# detrex: detectron2's backbone, mmdetection's blocks. Its last heads, after those of the layers, are the proposals'.
DINO_DETREX: Rules = [
    (r"backbone\.stem\.conv1\.weight", "backbone.body.conv1.weight"),
    (r"backbone\.stem\.conv1\.norm\.(.*)", r"backbone.body.bn1.\1"),
    *[
        rule
        for stage in (2, 3, 4, 5)
        for rule in (
            (rf"backbone\.res{stage}\.(\d+)\.conv(\d)\.weight", rf"backbone.body.layer{stage - 1}.\1.conv\2.weight"),
            (rf"backbone\.res{stage}\.(\d+)\.conv(\d)\.norm\.(.*)", rf"backbone.body.layer{stage - 1}.\1.bn\2.\3"),
            (
                rf"backbone\.res{stage}\.(\d+)\.shortcut\.weight",
                rf"backbone.body.layer{stage - 1}.\1.downsample.0.weight",
            ),
            (
                rf"backbone\.res{stage}\.(\d+)\.shortcut\.norm\.(.*)",
                rf"backbone.body.layer{stage - 1}.\1.downsample.1.\2",
            ),
        )
    ],
    (r"neck\.convs\.(\d+)\.conv\.(.*)", r"input_proj.\1.0.\2"),
    (r"neck\.convs\.(\d+)\.norm\.(.*)", r"input_proj.\1.1.\2"),
    (r"neck\.extra_convs\.(\d+)\.conv\.(.*)", r"input_proj.extra\1.0.\2"),
    (r"neck\.extra_convs\.(\d+)\.norm\.(.*)", r"input_proj.extra\1.1.\2"),
    (r"transformer\.level_embeds", "level_embed"),
    (r"transformer\.encoder\.layers\.(\d+)\.attentions\.0\.(.*)", r"encoder.\1.self_attn.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.norms\.0\.(.*)", r"encoder.\1.norm.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.ffns\.0\.layers\.0\.0\.(.*)", r"encoder.\1.ffn.linear1.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.ffns\.0\.layers\.1\.(.*)", r"encoder.\1.ffn.linear2.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.norms\.1\.(.*)", r"encoder.\1.ffn.norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.attentions\.0\.attn\.(.*)", r"decoder.\1.self_attn.attention.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norms\.0\.(.*)", r"decoder.\1.self_attn.norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.attentions\.1\.(.*)", r"decoder.\1.cross_attn.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norms\.1\.(.*)", r"decoder.\1.norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.ffns\.0\.layers\.0\.0\.(.*)", r"decoder.\1.ffn.linear1.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.ffns\.0\.layers\.1\.(.*)", r"decoder.\1.ffn.linear2.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norms\.2\.(.*)", r"decoder.\1.ffn.norm.\2"),
    (r"transformer\.decoder\.norm\.(.*)", r"decoder_norm.\1"),
    (r"transformer\.decoder\.ref_point_head\.(.*)", r"query_position.\1"),
    (r"transformer\.tgt_embed\.weight", "query_content.weight"),
    (r"transformer\.enc_output\.(.*)", r"proposal_proj.\1"),
    (r"transformer\.enc_output_norm\.(.*)", r"proposal_norm.\1"),
    (r"label_enc\.weight", "label_content.weight"),
    (r"(?:transformer\.decoder\.)?class_embed\.(\d+)\.(.*)", r"class_heads.\1.\2"),
    (r"(?:transformer\.decoder\.)?bbox_embed\.(\d+)\.(.*)", r"box_heads.\1.\2"),
]

_FUSIONS = {"fpn_blocks": "top_down", "pan_blocks": "bottom_up"}
# Parts that transformers took over with their names.
_HYBRID = (r"encoder\.lateral_convs", r"encoder\.downsample_convs", *(rf"encoder\.{name}" for name in _FUSIONS))

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


_HF_LAYER = r"model\.decoder\.layers\.(\d+)\."
_HF_AIFI = r"model\.encoder\.(?:encoder|aifi)\.0\.layers\.0\."  # the second name since version 5

# RTDetrForObjectDetection and RTDetrV2ForObjectDetection of transformers, as saved on the hub and as in memory.
RTDETR_TRANSFORMERS: Rules = [
    *[
        rule
        for theirs, ours in (("convolution", "conv"), ("normalization", "norm"))
        for rule in (
            (
                rf"model\.backbone\.model\.embedder\.embedder\.(\d+)\.{theirs}\.(.*)",
                rf"backbone.stem.\1.{ours}.\2",
            ),
            (
                rf"model\.backbone\.model\.encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.{theirs}\.(.*)",
                rf"backbone.stages.\1.\2.branch.\3.{ours}.\4",
            ),
            (
                rf"model\.backbone\.model\.encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.(?:1\.)?{theirs}\.(.*)",
                rf"backbone.stages.\1.\2.shortcut.{ours}.\3",
            ),
        )
    ],
    (r"model\.encoder_input_proj\.(\d+)\.0\.(.*)", r"encoder.input_proj.\1.conv.\2"),
    (r"model\.encoder_input_proj\.(\d+)\.1\.(.*)", r"encoder.input_proj.\1.norm.\2"),
    (_HF_AIFI + r"self_attn\.([qkv])_proj\.(.*)", r"encoder.attention.attention.\1.\2"),
    (_HF_AIFI + r"self_attn\.(?:out|o)_proj\.(.*)", r"encoder.attention.attention.out_proj.\1"),
    (_HF_AIFI + r"self_attn_layer_norm\.(.*)", r"encoder.attention.norm.\1"),
    (_HF_AIFI + r"(?:mlp\.)?fc([12])\.(.*)", r"encoder.ffn.linear\1.\2"),
    (_HF_AIFI + r"final_layer_norm\.(.*)", r"encoder.ffn.norm.\1"),
    *[(r"model\." + theirs, ours) for theirs, ours in RTDETR_PUBLISHED if theirs.startswith(_HYBRID)],
    (r"model\.decoder_input_proj\.(\d+)\.0\.(.*)", r"decoder_proj.\1.conv.\2"),
    (r"model\.decoder_input_proj\.(\d+)\.1\.(.*)", r"decoder_proj.\1.norm.\2"),
    (_HF_LAYER + r"self_attn\.([qkv])_proj\.(.*)", r"decoder.\1.self_attn.attention.\2.\3"),
    (_HF_LAYER + r"self_attn\.(?:out|o)_proj\.(.*)", r"decoder.\1.self_attn.attention.out_proj.\2"),
    (_HF_LAYER + r"self_attn_layer_norm\.(.*)", r"decoder.\1.self_attn.norm.\2"),
    (_HF_LAYER + r"encoder_attn\.(.*)", r"decoder.\1.cross_attn.\2"),
    (_HF_LAYER + r"encoder_attn_layer_norm\.(.*)", r"decoder.\1.norm.\2"),
    (_HF_LAYER + r"(?:mlp\.)?fc([12])\.(.*)", r"decoder.\1.ffn.linear\2.\3"),
    (_HF_LAYER + r"final_layer_norm\.(.*)", r"decoder.\1.ffn.norm.\2"),
    (r"model\.denoising_class_embed\.weight", "label_content.weight"),
    (r"model\.decoder\.query_pos_head\.(.*)", r"query_position.\1"),
    (r"model\.enc_output\.0\.(.*)", r"proposal_proj.\1"),
    (r"model\.enc_output\.1\.(.*)", r"proposal_norm.\1"),
    (r"model\.enc_score_head\.(.*)", r"proposal_class.\1"),
    (r"model\.enc_bbox_head\.(.*)", r"proposal_box.\1"),
    (r"(?:model\.decoder\.)?class_embed\.(\d+)\.(.*)", r"class_heads.\1.\2"),
    (r"(?:model\.decoder\.)?bbox_embed\.(\d+)\.(.*)", r"box_heads.\1.\2"),
]


@dataclass
class Renamed:
    """Tensors under our names, and what stands in the way.

    Attributes:
        tensors: By our names.
        unknown: Their names that no rule knows.
        differing: Pairs of their names that mean the same weight but do not hold the same numbers.
    """

    tensors: dict[str, Tensor]
    unknown: list[str]
    differing: list[str]


def rename(state: Mapping[str, Tensor], rules: Rules, ignored: Sequence[str] = ()) -> Renamed:
    """Rename tensors; one that stands in the file under several names is read once.

    Args:
        state: By their names.
        rules: Pairs of a pattern of their whole name and what it becomes.
        ignored: Patterns of names that are known and not needed.
    """
    compiled = [(re.compile(pattern), ours) for pattern, ours in rules]
    skipped = [re.compile(pattern) for pattern in ignored]
    found = Renamed({}, [], [])
    first: dict[str, str] = {}
    for name, tensor in state.items():
        if any(pattern.fullmatch(name) for pattern in skipped):
            continue
        target = next((match.expand(ours) for pattern, ours in compiled if (match := pattern.fullmatch(name))), None)
        if target is None:
            found.unknown.append(name)
        elif target in first and not torch.equal(found.tensors[target], tensor):
            found.differing.append(f"{first[target]} and {name}")
        else:
            first[target], found.tensors[target] = name, tensor
    return found


def join_projections(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put separate projections of queries, keys and values, where there are any, into one as torch has them."""
    joined = {name: tensor for name, tensor in tensors.items() if not _PROJECTION.fullmatch(name)}
    for name, tensor in tensors.items():
        match = _PROJECTION.fullmatch(name)
        if match and match[2] == "q":
            parts = [tensors.get(f"{match[1]}.{letter}.{match[3]}") for letter in "kv"]
            if all(part is not None for part in parts):
                joined[f"{match[1]}.in_proj_{match[3]}"] = torch.cat([tensor, *parts])  # type: ignore[list-item]
    return joined


_PROJECTION = re.compile(r"(.*\.attention)\.([qkv])\.(weight|bias)")
