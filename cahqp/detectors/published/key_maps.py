"""Weight names of the published checkpoints, and their names in cahqp."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Rules = list[tuple[re.Pattern[str], str]]


def _substitute(text: str, symbol: str, values: Sequence[str]) -> str:
    """Replace each match of a pattern by the next value."""
    remaining = iter(values)
    return re.sub(symbol, lambda _: next(remaining), text)


def _parse(table: str, prefix: str = "") -> Rules:
    r"""Return the rules of a table with one published name and one name of cahqp per line.

    Published names are regular expressions in which `.` is literal, `#` matches a number and `*` any text. In the names
    of cahqp, each `#` and `*` stands for the next group of the expression. Braces list alternatives: a line with
    `{a,b}` and `{c,d}` is two lines, the first with a and c.
    """
    rules = []
    for line in table.strip().splitlines():
        choices = [braces.split(",") for braces in re.findall("{(.*?)}", line)]
        for choice in zip(*choices, strict=True) if choices else [()]:
            published, own = _substitute(line, "{.*?}", choice).split()
            pattern = (prefix + published).replace(".", r"\.").replace("#", r"(\d+)").replace("*", "(.*)")
            groups = [rf"\g<{number}>" for number in range(1, len(own))]
            rules.append((re.compile(pattern), _substitute(own, "[#*]", groups)))
    return rules


_DINO = """
transformer.decoder.norm.*                                decoder_norm.*
transformer.decoder.ref_point_head.*                      query_position.*
transformer.tgt_embed.weight                              query_content.weight
transformer.enc_output{,_norm}.*                          proposal_{proj,norm}.*
label_enc.weight                                          label_content.weight
(?:transformer.decoder.)?{class,bbox}_embed.#.*           {class,box}_heads.#.*
"""

# IDEA-Research/DINO. The heads are stored once per layer, under two names each.
DINO_OFFICIAL = _parse("""
backbone.0.body.*                                         backbone.body.*
input_proj.*                                              input_proj.*
transformer.level_embed                                   level_embed
transformer.encoder.layers.#.self_attn.*                  encoder.#.self_attn.*
transformer.encoder.layers.#.norm{1,2}.*                  encoder.#.{norm,ffn.norm}.*
transformer.{encoder,decoder}.layers.#.linear#.*          {encoder,decoder}.#.ffn.linear#.*
transformer.decoder.layers.#.cross_attn.*                 decoder.#.cross_attn.*
transformer.decoder.layers.#.self_attn.*                  decoder.#.self_attn.attention.*
transformer.decoder.layers.#.norm{1,2,3}.*                decoder.#.{norm,self_attn.norm,ffn.norm}.*
transformer.enc_out_{class,bbox}_embed.*                  proposal_{class,box}.*
""") + _parse(_DINO)

# detrex: detectron2's backbone, mmdetection's blocks. The heads after those of the layers are the proposals'.
DINO_DETREX = _parse("""
backbone.stem.conv1.weight                                backbone.body.conv1.weight
backbone.stem.conv1.norm.*                                backbone.body.bn1.*
backbone.res{2,3,4,5}.#.conv#.weight                      backbone.body.layer{1,2,3,4}.#.conv#.weight
backbone.res{2,3,4,5}.#.conv#.norm.*                      backbone.body.layer{1,2,3,4}.#.bn#.*
backbone.res{2,3,4,5}.#.shortcut.weight                   backbone.body.layer{1,2,3,4}.#.downsample.0.weight
backbone.res{2,3,4,5}.#.shortcut.norm.*                   backbone.body.layer{1,2,3,4}.#.downsample.1.*
neck.convs.#.{conv,norm}.*                                input_proj.#.{0,1}.*
neck.extra_convs.#.{conv,norm}.*                          input_proj.extra#.{0,1}.*
transformer.level_embeds                                  level_embed
transformer.encoder.layers.#.attentions.0.*               encoder.#.self_attn.*
transformer.encoder.layers.#.norms.{0,1}.*                encoder.#.{norm,ffn.norm}.*
transformer.encoder.layers.#.ffns.0.layers.{0.0,1}.*      encoder.#.ffn.linear{1,2}.*
transformer.decoder.layers.#.attentions.{0.attn,1}.*      decoder.#.{self_attn.attention,cross_attn}.*
transformer.decoder.layers.#.norms.{0,1,2}.*              decoder.#.{self_attn.norm,norm,ffn.norm}.*
transformer.decoder.layers.#.ffns.0.layers.{0.0,1}.*      decoder.#.ffn.linear{1,2}.*
""") + _parse(_DINO)

# Parts of RT-DETR's encoder that transformers copied with their names.
_HYBRID = """
encoder.{lateral,downsample}_convs.*                      encoder.{lateral,downsample}.*
encoder.{fpn,pan}_blocks.#.bottlenecks.#.conv1.*          encoder.{top_down,bottom_up}.#.blocks.#.conv3.*
encoder.{fpn,pan}_blocks.#.bottlenecks.#.conv2.*          encoder.{top_down,bottom_up}.#.blocks.#.conv1.*
encoder.{fpn,pan}_blocks.#.conv#.*                        encoder.{top_down,bottom_up}.#.conv#.*
"""

# lyuwenyu/RT-DETR, both versions: v2 only renames the projections.
RTDETR_PUBLISHED = _parse("""
backbone.conv1.conv1_{1,2,3}.*                            backbone.stem.{0,1,2}.*
backbone.res_layers.#.blocks.#.branch2{a,b,c}.*           backbone.stages.#.#.branch.{0,1,2}.*
backbone.res_layers.#.blocks.#.short.conv.{conv,norm}.*   backbone.stages.#.#.shortcut.{conv,norm}.*
backbone.res_layers.#.blocks.#.short.{conv,norm}.*        backbone.stages.#.#.shortcut.{conv,norm}.*
encoder.input_proj.#.{(?:0|conv),(?:1|norm)}.*            encoder.input_proj.#.{conv,norm}.*
encoder.encoder.0.layers.0.self_attn.*                    encoder.attention.attention.*
encoder.encoder.0.layers.0.norm{1,2}.*                    encoder.{attention,ffn}.norm.*
encoder.encoder.0.layers.0.linear#.*                      encoder.ffn.linear#.*
decoder.input_proj.*                                      decoder_proj.*
decoder.decoder.layers.#.self_attn.*                      decoder.#.self_attn.attention.*
decoder.decoder.layers.#.norm{1,2,3}.*                    decoder.#.{self_attn.norm,norm,ffn.norm}.*
decoder.decoder.layers.#.cross_attn.*                     decoder.#.cross_attn.*
decoder.decoder.layers.#.linear#.*                        decoder.#.ffn.linear#.*
decoder.denoising_class_embed.weight                      label_content.weight
decoder.query_pos_head.*                                  query_position.*
decoder.enc_output.{(?:0|proj),(?:1|norm)}.*              proposal_{proj,norm}.*
decoder.enc_{score,bbox}_head.*                           proposal_{class,box}.*
decoder.dec_{score,bbox}_head.*                           {class,box}_heads.*
""") + _parse(_HYBRID)

# RTDetrForObjectDetection and RTDetrV2ForObjectDetection of transformers, as saved and as in memory. The first encoder
# layer is called `aifi` since version 5.
_TRANSFORMERS = """
backbone.model.embedder.embedder.#.{convolution,normalization}.*   backbone.stem.#.{conv,norm}.*
backbone.model.encoder.stages.#.layers.#.layer.#.convolution.* backbone.stages.#.#.branch.#.conv.*
backbone.model.encoder.stages.#.layers.#.layer.#.normalization.* backbone.stages.#.#.branch.#.norm.*
backbone.model.encoder.stages.#.layers.#.shortcut.(?:1.)?convolution.* backbone.stages.#.#.shortcut.conv.*
backbone.model.encoder.stages.#.layers.#.shortcut.(?:1.)?normalization.* backbone.stages.#.#.shortcut.norm.*
{encoder,decoder}_input_proj.#.0.*                        {encoder.input_proj,decoder_proj}.#.conv.*
{encoder,decoder}_input_proj.#.1.*                        {encoder.input_proj,decoder_proj}.#.norm.*
LAYER.self_attn.([qkv])_proj.*                            {encoder.attention,decoder.#.self_attn}.attention.#.*
LAYER.self_attn.(?:out|o)_proj.*                          {encoder.attention,decoder.#.self_attn}.attention.out_proj.*
LAYER.self_attn_layer_norm.*                              {encoder.attention,decoder.#.self_attn}.norm.*
LAYER.(?:mlp.)?fc#.*                                      {encoder,decoder.#}.ffn.linear#.*
LAYER.final_layer_norm.*                                  {encoder,decoder.#}.ffn.norm.*
decoder.layers.#.encoder_attn{,_layer_norm}.*             decoder.#.{cross_attn,norm}.*
denoising_class_embed.weight                              label_content.weight
decoder.query_pos_head.*                                  query_position.*
enc_output.{0,1}.*                                        proposal_{proj,norm}.*
enc_{score,bbox}_head.*                                   proposal_{class,box}.*
decoder.{class,bbox}_embed.#.*                            {class,box}_heads.#.*
""".replace("LAYER", "{encoder.(?:encoder|aifi).0.layers.0,decoder.layers.#}")
RTDETR_TRANSFORMERS = _parse(_TRANSFORMERS + _HYBRID.lstrip(), "model.")
RTDETR_TRANSFORMERS += _parse("{class,bbox}_embed.#.* {class,box}_heads.#.*")


@dataclass
class RenamedWeights:
    """Weights under the names of cahqp, and the problems of the renaming.

    Attributes:
        tensors: By the names of cahqp.
        unknown: Published names without a rule.
        differing: Pairs of published names of one weight with different values.
    """

    tensors: dict[str, Tensor]
    unknown: list[str]
    differing: list[str]


def rename(state: Mapping[str, Tensor], rules: Rules, ignored: Sequence[str] = ()) -> RenamedWeights:
    """Rename tensors. A tensor with several names in the file is read once.

    Args:
        state: By published names.
        rules: Patterns of whole published names, and the names of cahqp.
        ignored: Patterns of published names that are not needed.
    """
    renamed, first = RenamedWeights({}, [], []), dict[str, str]()
    for name, tensor in state.items():
        if any(re.fullmatch(pattern, name) for pattern in ignored):
            continue
        target = next((match.expand(own) for pattern, own in rules if (match := pattern.fullmatch(name))), None)
        if target is None:
            renamed.unknown.append(name)
        elif target in first and not torch.equal(renamed.tensors[target], tensor):
            renamed.differing.append(f"{first[target]} and {name}")
        else:
            first[target], renamed.tensors[target] = name, tensor
    return renamed


_PROJECTION = re.compile(r"(.*\.attention)\.([qkv])\.(weight|bias)")


def join_projections(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join separate projections of queries, keys and values, as `nn.MultiheadAttention` stores them."""
    joined = {name: tensor for name, tensor in tensors.items() if not _PROJECTION.fullmatch(name)}
    for name, tensor in tensors.items():
        match = _PROJECTION.fullmatch(name)
        if match and match[2] == "q":
            parts = [tensors.get(f"{match[1]}.{letter}.{match[3]}") for letter in "kv"]
            if all(part is not None for part in parts):
                joined[f"{match[1]}.in_proj_{match[3]}"] = torch.cat([tensor, *parts])  # type: ignore[list-item]
    return joined
