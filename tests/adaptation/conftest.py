from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

SHAPES = [(4, 6), (2, 3)]
TOKENS = 30


@dataclass
class Features:
    encoder: list[Tensor]
    decoder: list[Tensor]
    spatial_shapes: list[tuple[int, int]]
    padding: Tensor

    def with_padded(self, value: float) -> "Features":
        filled = [layer.detach().masked_fill(self.padding[:, :, None], value) for layer in self.encoder]
        return replace(self, encoder=[layer.requires_grad_() for layer in filled])


@pytest.fixture
def features() -> Features:
    """Two images of 64x96 pixels; the right third of the second is padding."""
    torch.manual_seed(0)
    masks = [torch.zeros(2, h, w, dtype=torch.bool) for h, w in SHAPES]
    masks[0][1, :, 4:], masks[1][1, :, 2:] = True, True
    return Features(
        encoder=[torch.randn(2, TOKENS, 8, requires_grad=True) for _ in range(3)],
        decoder=[torch.randn(2, 5, 8, requires_grad=True) for _ in range(3)],
        spatial_shapes=SHAPES,
        padding=torch.cat([m.flatten(1) for m in masks], 1),
    )
