"""Gradient reversal, discriminators and their loss: the parts that every alignment shares.

One optimizer trains both sides. The domain loss is added to the detection loss; the reversal, which sits on the
features, makes the detector climb what the discriminator descends. So the loss is never negated as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cahqp.detectors.losses.distributed import sum_over_ranks, world_size

SOURCE, TARGET = 0, 1
DOMAINS = ("source", "target")
"""Names of the domains by their number."""


class AlignmentFeatures(Protocol):
    """What alignment reads of a detector's features."""

    @property
    def encoder(self) -> Sequence[Tensor]:
        """(B, S, D) tokens per encoder layer; the last is the encoder's output."""

    @property
    def decoder(self) -> Sequence[Tensor]:
        """(B, Q, D) queries per decoder layer, without denoising queries."""

    @property
    def spatial_shapes(self) -> Sequence[tuple[int, int]]:
        """Height and width per level; the tokens are the levels one after the other, row by row."""

    @property
    def padding(self) -> Tensor:
        """(B, S) bool, true where a token is padding."""


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float | Tensor) -> Tensor:
        # A schedule may move its tensor in place between forward and backward; the value of the forward counts.
        ctx.scale = scale.detach().clone() if isinstance(scale, Tensor) else scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -(gradients[0] * ctx.scale), None


def gradient_reversal(x: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Return `x` unchanged, whose gradient is multiplied by `-scale` on the way back (Ganin and Lempitsky 2015).

    Args:
        x: Any shape.
        scale: A number or a 0-d tensor; what reaches the detector. The discriminator's own gradient is not scaled.
    """
    reversed_: Tensor = _Reversal.apply(x, scale)
    return reversed_


def dann_schedule(progress: float, maximum: float = 1.0) -> float:
    """Return the reversal's scale after a share of the training: 0 at the start, nearly `maximum` at the end.

    `maximum * (2 / (1 + exp(-10 p)) - 1)`, computed afresh: it must not be fed its own last value (SFA's release is,
    and stays at zero).

    Args:
        progress: Share of the training that is done; clipped to 0..1.
        maximum: What the scale grows towards.
    """
    progress = min(max(progress, 0.0), 1.0)
    return maximum * (2 / (1 + math.exp(-10 * progress)) - 1)


class Discriminator(nn.Module):
    """A multilayer perceptron that tells source from target.

    Args:
        dim: Length of a feature.
        hidden: Width of the hidden layers.
        layers: Number of linear layers; SFA has three.
    """

    def __init__(self, dim: int, hidden: int = 256, layers: int = 3) -> None:
        super().__init__()
        widths = [dim] + [hidden] * (layers - 1)
        stages: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            stages += [nn.Linear(wide, narrow), nn.ReLU()]
        self.layers = nn.Sequential(*stages, nn.Linear(widths[-1], 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return (...) logits of (..., D) features; above 0 means target."""
        logits: Tensor = self.layers(features)
        return logits.squeeze(-1)


def domain_loss(logits: Tensor, domain: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return how badly a discriminator tells the domain, and how often it is right.

    Binary cross-entropy in float32 also under autocast, averaged with the weights over all ranks. Without any weight
    the loss is 0 and still connected to the logits, so that every parameter gets a gradient on every rank.

    Args:
        logits: Any shape; above 0 means target. One domain at a time: a joint pass is cut by domain by the caller, and
            the two losses are averaged.
        domain: 0 for source, 1 for target.
        weight: Shape of the logits, zero or above; ones where not given.

    Returns:
        The loss, and the accuracy without gradient, which is NaN where no weight was given to anything.
    """
    if domain not in (SOURCE, TARGET):
        message = f"domain must be 0 (source) or 1 (target), got {domain!r}."
        raise ValueError(message)
    logits = logits.float()
    weight = torch.ones_like(logits) if weight is None else weight.detach().to(logits)
    losses = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(domain)), reduction="none")
    # Of all ranks together, as in the criterion: else a box on a rank with one would count more than one of ten.
    total = sum_over_ranks(weight.sum()) / world_size()
    loss = (losses * weight).sum() / total.clamp(min=1e-6)
    correct = (logits.detach() > 0) == (domain == TARGET)
    return loss, (correct * weight).sum() / weight.sum()
