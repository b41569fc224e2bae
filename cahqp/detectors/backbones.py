"""Backbones: any timm feature extractor, and the ResNet-vd of the RT-DETR paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import timm.layers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import FeatureListNet
from torch import Tensor, nn

from cahqp.detectors.base import weights_error
from cahqp.detectors.layers.basic import ConvNorm
from cahqp.detectors.layers.checkpointing import checkpointed


class TimmBackbone(nn.Module):
    """Feature maps of a timm model at the requested strides.

    Args:
        name: A timm model that supports `features_only`.
        strides: Strides of the maps, ascending.
        pretrained: Download timm's own weights, unless `weights` are set.
        weights: A local safetensors file in timm's names; see `load_backbone`.
        freeze_norm: Replace BatchNorm by a frozen one that keeps its statistics and scale.
        frozen_stages: Number of first feature stages, including the stem, that do not train.
        options: Further arguments of the timm model, such as `channels`.

    Attributes:
        channels: Channels of each map.
        checkpointing: Whether training recomputes the activations of a stage in the backward pass.

    Raises:
        ValueError: The model has no map at one of the strides, or fewer stages than `frozen_stages`.
    """

    def __init__(
        self,
        name: str,
        strides: Sequence[int],
        *,
        pretrained: bool = False,
        weights: Path | None = None,
        freeze_norm: bool = False,
        frozen_stages: int = 0,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        arguments: dict[str, Any] = {"features_only": True, **(options or {})}
        probe: Any = timm.create_model(name, pretrained=False, **arguments)
        reductions = probe.feature_info.reduction()
        missing = [s for s in strides if s not in reductions]
        if missing:
            message = f"Backbone {name} has strides {reductions}, not {missing}. Choose other strides or another model."
            raise ValueError(message)
        last = {stride: index for index, stride in enumerate(reductions)}
        arguments["out_indices"] = [last[s] for s in strides]
        body: Any = timm.create_model(name, pretrained=pretrained and weights is None, **arguments)
        if weights is not None:
            load_backbone(body, weights)
        self.channels: list[int] = body.feature_info.channels()
        ends = [info["module"] for info in body.feature_info.info]
        if freeze_norm:
            freeze: Any = timm.layers.freeze_batch_norm_2d  # type: ignore[attr-defined]
            body = freeze(body)
        self.body: nn.Module = body
        self.checkpointing = False
        self._stages = _stages(body, ends)
        if frozen_stages > len(ends):
            message = f"Backbone {name} has {len(ends)} stages, frozen_stages={frozen_stages} is too many."
            raise ValueError(message)
        if frozen_stages:
            self._freeze_up_to(ends[frozen_stages - 1])

    def _freeze_up_to(self, stage: str) -> None:
        """Stop training all modules registered before the end of a stage."""
        modules = list(self.body.named_modules())
        last = max(i for i, (name, _) in enumerate(modules) if f"{name}.".startswith((f"{stage}.", f"{_flat(stage)}.")))
        for _, module in modules[: last + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one (B, C, h, w) map per stride."""
        images = images.contiguous(memory_format=torch.channels_last)  # faster convolutions
        if not (self.checkpointing and self._stages):
            maps: list[Tensor] = checkpointed([self.body], images) if self.checkpointing else self.body(images)
            return maps
        maps_by_end, x = {}, images
        for names in self._stages:
            x = checkpointed([self.body.get_submodule(name) for name in names], x)
            maps_by_end[names[-1]] = x
        return [maps_by_end[name] for name in self.body.return_layers]  # type: ignore[union-attr]


def _flat(name: str) -> str:
    """Return timm's name of a module that a feature extractor takes out of a nested module."""
    return name.replace(".", "_")


def _stages(body: nn.Module, ends: Sequence[str]) -> list[list[str]]:
    """Return the names of a feature extractor's modules by stage; empty if the stages do not run in sequence."""
    if not isinstance(body, FeatureListNet):
        return []
    last = {_flat(end) for end in ends}
    stages: list[list[str]] = [[]]
    for name, _ in body.named_children():
        stages[-1].append(name)
        if _flat(name) in last:
            stages.append([])
    return stages[:-1]


def load_backbone(body: nn.Module, path: Path) -> None:
    """Load a backbone's weights from a safetensors file, which may contain the whole classifier.

    Args:
        body: A timm feature extractor; it may flatten `a.b` to `a_b` in its names.
        path: The file, in the names of the timm model. Float16 becomes float32.

    Raises:
        WeightsError: The file cannot be read, a weight is missing or has another shape, or the file has more layers in
            a stage than this backbone, so it belongs to a deeper one.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise weights_error(path, f"cannot be read ({error}). Give a safetensors file in timm's names") from error
    own = body.state_dict()
    names = {_flat(name): name for name in own}
    matched = {names[_flat(k)]: v for k, v in state.items() if _flat(k) in names}
    remedy = "Change `backbone`, or give its own file"
    problems = [n for n in own if n not in matched and not n.endswith("num_batches_tracked")]
    problems += [n for n, v in matched.items() if v.shape != own[n].shape]
    if problems:
        problem = f"does not fit this backbone: {len(problems)} weights are missing or misshapen, {problems[:5]}"
        raise weights_error(path, f"{problem}. {remedy}")
    ends: Any = [_flat(info["module"]) + "_" for info in body.feature_info.info]  # type: ignore[union-attr]
    stages = tuple(end for end in ends if any(name.startswith(end) for name in names))  # stages of this backbone
    unused = [name for name in state if _flat(name) not in names and name.endswith((".weight", ".bias"))]
    deeper = [name for name in unused if _flat(name).startswith(stages)]
    if deeper:
        problem = f"belongs to a deeper backbone: its {deeper[0]} and {len(deeper) - 1} more weights do not exist here"
        raise weights_error(path, f"{problem}. {remedy}")
    body.load_state_dict(matched, strict=False)


class _VdBlock(nn.Module):
    """Residual block of ResNet-vd, whose strided shortcut averages before its 1x1 convolution (arXiv 1812.01187)."""

    def __init__(self, in_channels: int, width: int, stride: int, project: bool, bottleneck: bool) -> None:
        super().__init__()
        out_channels = width * 4 if bottleneck else width
        relu = nn.ReLU()
        if bottleneck:
            self.branch = nn.Sequential(
                ConvNorm(in_channels, width, 1, 1, relu),
                ConvNorm(width, width, 3, stride, relu),
                ConvNorm(width, out_channels, 1),
            )
        else:
            self.branch = nn.Sequential(ConvNorm(in_channels, width, 3, stride, relu), ConvNorm(width, width, 3))
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True) if project and stride == 2 else nn.Identity()
        self.shortcut = ConvNorm(in_channels, out_channels, 1) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.branch(x) + self.shortcut(self.pool(x))
        return summed.relu()


class ResNetVd(nn.Module):
    """ResNet-vd of RT-DETR, with maps at strides 8, 16 and 32.

    Args:
        depths: Blocks per stage, such as (2, 2, 2, 2) for 18 layers.
        width: Channels of the stem's output and of the first stage; 64 in the paper.
        bottleneck: Blocks of three convolutions with four times the width, for 50 and 101 layers.

    Attributes:
        channels: Channels of each map.
    """

    def __init__(self, depths: Sequence[int] = (2, 2, 2, 2), width: int = 64, bottleneck: bool = False) -> None:
        super().__init__()
        half, relu = width // 2, nn.ReLU()
        self.stem = nn.Sequential(
            ConvNorm(3, half, 3, 2, relu), ConvNorm(half, half, 3, 1, relu), ConvNorm(half, width, 3, 1, relu)
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.stages = nn.ModuleList()
        channels, self.channels = width, []
        for index, depth in enumerate(depths):
            blocks = []
            for block in range(depth):
                stride = 2 if block == 0 and index > 0 else 1
                blocks.append(_VdBlock(channels, width * 2**index, stride, block == 0, bottleneck))
                channels = width * 2**index * (4 if bottleneck else 1)
            self.stages.append(nn.Sequential(*blocks))
            if index > 0:
                self.channels.append(channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return (B, C, h, w) maps at strides 8, 16 and 32."""
        x = self.pool(self.stem(images.contiguous(memory_format=torch.channels_last)))  # faster convolutions
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1:]
