"""Vectors that a visual prompt injects, recorded for metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cahqp.detectors.prompts.visual_prompt import PromptedFeatures, VisualPrompt


class Injected(NamedTuple):
    """Vectors of one forward pass, detached float32.

    Attributes:
        vectors: (levels, B, D) mean over the unpadded positions of the change at the input. For a prompt without the
            place `input`, (levels, B, Dp) prompts instead.
        share: (levels, B) length of a vector divided by the root mean square length of the features there; zeros
            without the place `input`.
    """

    vectors: Tensor
    share: Tensor


@contextmanager
def record_injected(prompt: VisualPrompt | None) -> Iterator[list[Injected]]:
    """Collect the injected vectors of every forward pass inside the block.

    Args:
        prompt: The prompt; `None` records nothing.
    """
    recorded: list[Injected] = []
    if prompt is None:
        yield recorded
        return

    def record(_: Any, inputs: tuple[Any, ...], output: PromptedFeatures) -> None:
        recorded.append(_injected(inputs[0], inputs[1], output))

    handle = prompt.register_forward_hook(record)
    try:
        yield recorded
    finally:
        handle.remove()


@torch.no_grad()
def _injected(features: Sequence[Tensor], padding_masks: Sequence[Tensor], output: PromptedFeatures) -> Injected:
    vectors, shares = [], []
    for before, after, padded in zip(features, output.features, padding_masks, strict=True):
        valid = (~padded).flatten(1).float()
        valid = valid / valid.sum(1, keepdim=True).clamp(min=1)
        # Padded features may be anything, and 0 x NaN is NaN.
        before, after = (m.float().masked_fill(padded[:, None], 0.0).flatten(2) for m in (before, after))
        vectors.append(((after - before) @ valid[:, :, None])[..., 0])
        mean_square = (before.square().sum(1) * valid).sum(1)
        shares.append(vectors[-1].norm(dim=1) / mean_square.sqrt().clamp(min=1e-12))
    if output.deep is not None and output.features[0] is features[0]:
        return Injected(output.deep.prompts.detach().float(), torch.stack(shares))
    return Injected(torch.stack(vectors), torch.stack(shares))
