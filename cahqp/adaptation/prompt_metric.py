"""DA-VPT's metric term (Ren et al. 2025), which draws each component of a prompt to its classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cahqp.detectors.losses.distributed import sum_over_ranks
from cahqp.detectors.prompts.generator import VisualPromptGenerator


def proxy_anchor(
    samples: Tensor, proxies: Tensor, proxy_of: Tensor, weights: Tensor, alpha: float = 32.0, delta: float = 0.1
) -> Tensor:
    """Return the proxy-anchor loss (Kim et al. 2020) of samples and proxies, in their cosine similarity.

    Args:
        samples: (N, D) features.
        proxies: (M, D) features.
        proxy_of: (N,) index of each sample's proxy.
        weights: (N,) weight of each sample, 0..1.
        alpha: Sharpness, as in DA-VPT.
        delta: Margin, as in DA-VPT.
    """
    similarity = F.normalize(samples, dim=-1) @ F.normalize(proxies, dim=-1).T
    own = F.one_hot(proxy_of, len(proxies)).bool()
    weight = weights[:, None].expand_as(similarity)
    pull = torch.where(own, weight * (-alpha * (similarity - delta)).exp(), 0.0).sum(0)
    push = torch.where(own, 0.0, weight * (alpha * (similarity + delta)).exp()).sum(0)
    present = own.any(0)
    return pull.log1p().sum() / present.sum().clamp(min=1) + push.log1p().mean()


@torch.no_grad()
def class_map(means: Tensor, components: int, rounds: int = 20) -> Tensor:
    """Return (C,) index of the component of each class.

    If there are enough components, every class has its own. Otherwise classes with similar mean features share one
    (k-means by cosine).

    Args:
        means: (C, D) mean feature per class.
        components: Number of components.
        rounds: Rounds of k-means.
    """
    count = len(means)
    if count <= components:
        return torch.arange(count, device=means.device)
    points = F.normalize(means, dim=-1)
    centres = points[:components].clone()
    for _ in range(rounds):
        nearest = (points @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(sums.any(1, keepdim=True), F.normalize(sums, dim=-1), centres)
    return (points @ centres.T).argmax(1)


class PromptMetric(nn.Module):
    """Loss that draws the components of a prompt's bank to the classes of instances.

    DA-VPT draws prompts to the class tokens of a vision transformer. A detector has none, so an instance's mean token
    replaces them, after the generator's query projection.

    Args:
        num_classes: Number of classes.
        dim: Length of a token.
        momentum: Share of the old value in the running mean feature of a class.
    """

    means: Tensor

    def __init__(self, num_classes: int, dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("means", torch.zeros(num_classes, dim))

    def forward(self, generator: VisualPromptGenerator, instances: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Return the loss; without instances it is 0 and still has a gradient.

        Args:
            generator: Generator whose components are the proxies.
            instances: (N, D) mean tokens.
            labels: (N,) class indices.
            weights: (N,) weight of each instance.
        """
        self._update_means(instances, labels)
        proxy_of = class_map(self.means, len(generator.values))[labels]
        return proxy_anchor(generator.query(instances), generator.values, proxy_of, weights)

    @torch.no_grad()
    def _update_means(self, instances: Tensor, labels: Tensor) -> None:
        hot = F.one_hot(labels, len(self.means)).to(self.means)
        count = sum_over_ranks(hot.sum(0)[:, None])
        mean = sum_over_ranks(hot.T @ instances.to(self.means)) / count.clamp(min=1)
        moved = torch.where(self.means.any(1, keepdim=True), self.momentum, 0.0)
        self.means.copy_(torch.where(count > 0, moved * self.means + (1 - moved) * mean, self.means))
