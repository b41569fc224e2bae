"""Features of a transformers model for alignment, captured by hooks, and the place where a visual prompt enters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cahqp.detectors.huggingface.families import Family
from cahqp.detectors.layers.basic import to_tokens

Prompt = Callable[[list[Tensor], list[Tensor]], list[Tensor]]
"""Function that injects a prompt into the maps of all levels (B, D, h, w); see `Captured.projected` for the second."""


@dataclass
class Captured:
    """Intermediate tensors of a forward pass.

    Attributes:
        maps: Per level (B, D, h, w) that enters the encoder, with the prompt.
        projected: Per level (B, D, h, w), the maps before the normalisation of the projection and without the prompt.
        encoder: Per encoder layer (B, S, D); the last enters the decoder. One entry if the layers have no such tokens.
        decoder: Per decoder layer (B, Q, D), denoising queries and all groups included.
        shapes: Height and width of each level of the tokens.
    """

    maps: list[Tensor] = field(default_factory=list)
    projected: list[Tensor] = field(default_factory=list)
    encoder: list[Tensor] = field(default_factory=list)
    decoder: list[Tensor] = field(default_factory=list)
    shapes: list[tuple[int, int]] = field(default_factory=list)


def projections(base: Any, family: Family) -> list[nn.Module]:
    """Return the modules whose maps enter the encoder."""
    module = attrgetter(family.projections)(base)
    return list(module) if isinstance(module, nn.ModuleList) else [module]


@contextmanager
def captured_features(base: Any, family: Family, prompt: Prompt | None) -> Iterator[Captured]:
    """Capture the features of a forward pass inside the block, and inject a prompt into the maps before the encoder.

    Args:
        base: The model of transformers without its heads.
        family: Its family.
        prompt: Injection of the prompt; `None` for none.
    """
    captured = Captured()
    hooks = _capture_maps(base, family, captured) + _capture_layers(base, family, captured)
    if prompt is not None:
        hooks.append(_inject(base, projections(base, family), captured, prompt))
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()


def _capture_maps(base: Any, family: Family, captured: Captured) -> list[RemovableHandle]:
    def capture(_: nn.Module, __: Any, out: Tensor) -> None:
        captured.maps.append(out)
        _make_gradient_contiguous(out)

    def capture_projected(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        captured.projected.append(inputs[0])

    modules = projections(base, family)
    hooks = [module.register_forward_hook(capture) for module in modules]
    # A projection is a convolution, mostly with a norm behind it.
    norms = [module[1] for module in modules if isinstance(module, nn.Sequential) and len(module) > 1]
    hooks += [norm.register_forward_pre_hook(capture_projected) for norm in norms]
    for module in getattr(base, "decoder_input_proj", []):
        hooks.append(module.register_forward_hook(lambda _, __, out: _make_gradient_contiguous(out)))
    return hooks


def _capture_layers(base: Any, family: Family, captured: Captured) -> list[RemovableHandle]:
    def into(outputs: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out)

    def before_decoder(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        shapes = kwargs.get("spatial_shapes_list") or [m.shape[-2:] for m in captured.maps]
        captured.shapes = [(int(height), int(width)) for height, width in shapes]
        captured.encoder[-1:] = [kwargs["encoder_hidden_states"]]  # behind the norm that some encoders end with

    layers = base.encoder.layers if family.encoder_layers else []
    hooks = [layer.register_forward_hook(into(captured.encoder)) for layer in layers]
    hooks += [layer.register_forward_hook(into(captured.decoder)) for layer in base.decoder.layers]
    return [*hooks, base.decoder.register_forward_pre_hook(before_decoder, with_kwargs=True)]


def _inject(base: Any, modules: Sequence[nn.Module], captured: Captured, prompt: Prompt) -> RemovableHandle:
    """Inject a prompt: behind the only projection, or into the maps or tokens of all levels that the encoder gets."""

    def prompted(maps: list[Tensor]) -> list[Tensor]:
        captured.maps = prompt(maps, captured.projected or maps)
        for changed in captured.maps:
            _make_gradient_contiguous(changed)
        return captured.maps

    def before_encoder(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = args[0] if args else kwargs["inputs_embeds"]
        if isinstance(given, Tensor):
            changed: Any = torch.cat([to_tokens(m) for m in prompted(captured.maps)], 1)
        else:
            changed = prompted(list(given))
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "inputs_embeds": changed})

    if len(modules) == 1:
        return modules[0].register_forward_hook(lambda _, __, out: prompted([out])[0])
    handle: RemovableHandle = base.encoder.register_forward_pre_hook(before_encoder, with_kwargs=True)
    return handle


def _make_gradient_contiguous(out: Tensor) -> None:
    """Make the gradient of a map contiguous.

    transformers turns the maps into tokens by `flatten(2).transpose(1, 2)`. `to_tokens` describes the wrong gradients
    that this gives a BatchNorm on the CPU for a batch of one image.
    """
    if out.requires_grad:
        out.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: gradient.clone(memory_format=torch.contiguous_format)
        )
