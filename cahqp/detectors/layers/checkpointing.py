"""Activation checkpointing (arXiv 1604.06174): what the backward pass needs is computed again instead of kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpointed(modules: Sequence[nn.Module], *given: Any) -> Any:
    """Return what modules one after the other make of the arguments, without keeping what happens inside.

    The gradient is the same: random numbers are drawn again alike, and BatchNorm layers, which see their batch twice,
    remember it once.

    Args:
        modules: The first gets all arguments, each other one what the one before returned.
        given: Arguments of the first.
    """
    if not torch.is_grad_enabled():
        return _in_turn(modules, *given)
    options: dict[str, Any] = {}
    norms = [n for m in modules for n in m.modules() if isinstance(n, nn.modules.batchnorm._BatchNorm)]
    norms = [n for n in norms if n.training and n.track_running_stats]
    if norms:  # only then, for torch.compile passes over a checkpoint without contexts alone
        options["context_fn"] = partial(_contexts, norms)
    return checkpoint(partial(_in_turn, modules), *given, use_reentrant=False, **options)


def _in_turn(modules: Sequence[nn.Module], *given: Any) -> Any:
    out = modules[0](*given)
    for module in modules[1:]:
        out = module(out)
    return out


def _contexts(
    norms: Sequence[nn.modules.batchnorm._BatchNorm],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return what the first pass runs in, and the second."""
    return nullcontext(), _forgetful(norms)


@contextmanager
def _forgetful(norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Let BatchNorm layers in training normalise by their batch and remember nothing of it.

    Not by taking their statistics away: both passes must save as many tensors.
    """
    kept = [
        (norm, norm.momentum, norm.num_batches_tracked.clone())
        for norm in norms
        if norm.num_batches_tracked is not None
    ]
    for norm, _, _ in kept:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, seen in kept:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(seen)  # type: ignore[union-attr]
