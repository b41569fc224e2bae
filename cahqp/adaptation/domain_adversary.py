"""Gradient reversal, discriminators and their loss, shared by all alignment terms.

One optimizer trains both sides. The domain loss is added to the detection loss. The reversal sits on the features, so
the detector increases the loss that the discriminator decreases. The loss itself is never negated.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cahqp.detectors.losses.distributed import sum_over_ranks, world_size

SOURCE, TARGET = 0, 1
DOMAINS = ("source", "target")
"""Names of the domains by their number."""


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float | Tensor) -> Tensor:
        # A schedule may change its tensor in place before the backward pass; the value of the forward pass counts.
        ctx.scale = scale.detach().clone() if isinstance(scale, Tensor) else scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -(gradients[0] * ctx.scale), None


def gradient_reversal(x: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Return `x` unchanged; its gradient is multiplied by `-scale` (Ganin and Lempitsky 2015).

    Args:
        x: Features of any shape.
        scale: Number or 0-d tensor. It scales the detector's gradient, not the discriminator's.
    """
    reversed_: Tensor = _Reversal.apply(x, scale)
    return reversed_


def dann_schedule(progress: float, maximum: float = 1.0) -> float:
    """Return the reversal's scale `maximum * (2 / (1 + exp(-10 p)) - 1)`, from 0 to nearly `maximum`.

    Args:
        progress: Share p of the training that is done; clipped to 0..1.
        maximum: Limit of the scale.
    """
    progress = min(max(progress, 0.0), 1.0)
    return maximum * (2 / (1 + math.exp(-10 * progress)) - 1)


class Discriminator(nn.Module):
    """Multilayer perceptron with three linear layers, as in SFA, that separates source from target.

    Args:
        dim: Length of a feature.
        hidden: Width of the hidden layers.
    """

    def __init__(self, dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return (...) logits of (..., D) features; above 0 means target."""
        logits: Tensor = self.layers(features)
        return logits.squeeze(-1)


def domain_loss(logits: Tensor, domain: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the loss and the accuracy of a discriminator.

    The loss is binary cross-entropy in float32, also under autocast, as a weighted mean over all ranks. If all weights
    are zero, the loss is 0 but depends on the logits, so that every parameter gets a gradient on every rank.

    Args:
        logits: Logits of one domain, any shape; above 0 means target.
        domain: 0 for source, 1 for target.
        weight: Weights in the shape of the logits, zero or above; ones by default.

    Returns:
        The loss, and the accuracy without gradient, which is NaN if all weights are zero.
    """
    if domain not in (SOURCE, TARGET):
        message = f"domain must be 0 (source) or 1 (target), got {domain!r}."
        raise ValueError(message)
    logits = logits.float()
    weight = torch.ones_like(logits) if weight is None else weight.detach().to(logits)
    losses = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(domain)), reduction="none")
    # The total of all ranks, as in the criterion; otherwise a box on a rank with few boxes would count more.
    total = sum_over_ranks(weight.sum()) / world_size()
    loss = (losses * weight).sum() / total.clamp(min=1e-6)
    correct = (logits.detach() > 0) == (domain == TARGET)
    return loss, (correct * weight).sum() / weight.sum()
