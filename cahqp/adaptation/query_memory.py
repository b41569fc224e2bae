"""Memory of past domain queries, from which a discriminator of DQFA learns beside those of the step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cahqp.adaptation.all_gather import gathered
from cahqp.adaptation.domain_adversary import Discriminator, domain_loss
from cahqp.detectors.losses.distributed import world_size

PRESENT = 0.5
"""Share of the present queries in a loss with past ones, whatever their numbers."""


class QueryMemory(nn.Module):
    """Last domain queries of each domain and layer, detached.

    A domain query is one sample per image, and a batch has few images: SFA's author calls one image per batch too few
    for the discriminator. Past queries train the discriminator only. `commit` stores the queries of all processes after
    the step, so that the repetition of a step computes the same.

    Args:
        size: Stored queries per domain and layer; 0 stores none.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._past: dict[str, Tensor] = {}
        self._pending: list[tuple[str, Tensor]] = []

    def reversal(self, domain: int, scale: float | Tensor) -> float | Tensor:
        """Return the reversal scale that leaves the gradient of the features as without a memory."""
        return scale / PRESENT if any(name.endswith(f"/{domain}") for name in self._past) else scale

    def judge(self, discriminator: Discriminator, layer: int, queries: Tensor, domain: int) -> tuple[Tensor, Tensor]:
        """Return the loss on present and past queries, and the accuracy on the present ones.

        Args:
            discriminator: Discriminator of the branch.
            layer: Layer after which the queries are judged.
            queries: (B, D) present queries.
            domain: 0 for source, 1 for target.
        """
        name = f"{layer}/{domain}"
        loss, accuracy = domain_loss(discriminator(queries), domain)
        if self.size:
            self._pending.append((name, queries.detach().float()))
        if name not in self._past:
            return loss, accuracy
        past, _ = domain_loss(discriminator(self._past[name].to(queries.device)), domain)
        return PRESENT * loss + (1 - PRESENT) * past, accuracy

    def commit(self) -> None:
        """Store the queries judged since the last call. Every process must call this equally often."""
        pending, self._pending = self._pending, []
        if world_size() > 1:
            pending = [(name, queries.cpu()) for name, queries in pending]
        for name, queries in gathered(pending):
            known = [self._past[name].to(queries.device)] if name in self._past else []
            self._past[name] = torch.cat([*known, queries])[-self.size :]

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the stored queries for the checkpoint, so that a resumed run equals an uninterrupted one."""
        return {name: past.cpu() for name, past in self._past.items()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the stored queries."""
        self._past, self._pending = dict(state), []
