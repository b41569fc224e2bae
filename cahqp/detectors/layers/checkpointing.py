"""Activation checkpointing (arXiv 1604.06174): activations are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpointed(modules: Sequence[nn.Module], *args: Any) -> Any:
    """Return the result of modules in sequence without keeping their activations.

    The gradient is unchanged: random numbers repeat, and BatchNorm layers, which see their batch twice, update their
    statistics once.

    Args:
        modules: The first gets all arguments, each other the result of the one before.
        args: Arguments of the first module.
    """
    if not torch.is_grad_enabled():
        return _sequence(modules, *args)
    options: dict[str, Any] = {}
    norms = [n for m in modules for n in m.modules() if isinstance(n, _BatchNorm)]
    norms = [n for n in norms if n.training and n.track_running_stats]
    if norms:  # only then: torch.compile supports checkpoints without contexts only
        options["context_fn"] = partial(_contexts, norms)
    return checkpoint(partial(_sequence, modules), *args, use_reentrant=False, **options)


def _sequence(modules: Sequence[nn.Module], *args: Any) -> Any:
    out = modules[0](*args)
    for module in modules[1:]:
        out = module(out)
    return out


def _contexts(norms: Sequence[_BatchNorm]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the forward pass and of the recomputation."""
    return nullcontext(), _frozen_statistics(norms)


@contextmanager
def _frozen_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let BatchNorm layers normalise by their batch without updating their statistics.

    The statistics are not removed, because both passes must save the same number of tensors.
    """
    counted = [n for n in norms if n.num_batches_tracked is not None]
    saved = [(n, n.momentum, n.num_batches_tracked.clone()) for n in counted]  # type: ignore[union-attr]
    for norm in counted:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in saved:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
