"""TIAFA: alignment of the encoder's output at instances, each with the same mass, smoothed over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cahqp.adaptation.domain_adversary import Discriminator, domain_loss, gradient_reversal
from cahqp.adaptation.track_bank import TrackBank
from cahqp.detectors.base import AlignmentFeatures
from cahqp.errors import ConfigError
from cahqp.frame import Frame
from cahqp.structures import Targets

Unit = Literal["token", "instance"]
Rows = list[tuple[Tensor, Tensor]]
"""Input of a discriminator: features and weights per level."""

_TINY = 1e-6


def box_masks(
    boxes: Sequence[Tensor], image_size: tuple[int, int], spatial_shapes: Sequence[tuple[int, int]], padding: Tensor
) -> list[Tensor]:
    """Return per image (N, S) soft masks of its boxes over the tokens of all levels.

    A token's share is the area of its cell that a box covers. The shares of a box add up to 1 on every level, so large
    boxes do not count more. A box that covers no unpadded cell gets the nearest one.

    Args:
        boxes: (N, 4) xyxy per image, in pixels of the image as it is in the batch.
        image_size: Height and width of the batch in pixels, padding included.
        spatial_shapes: Height and width per level.
        padding: (B, S) bool, true where a token is padding.
    """
    counts = [len(box) for box in boxes]
    joined = torch.cat(list(boxes)).detach().float()
    cells = [height * width for height, width in spatial_shapes]
    padded = padding.repeat_interleave(torch.tensor(counts, device=padding.device), 0)
    levels = zip(spatial_shapes, torch.split(padded, cells, 1), strict=True)
    masks = torch.cat([_level_masks(joined, image_size, shape, rows) for shape, rows in levels], 1)
    return list(torch.split(masks, counts))


def _level_masks(boxes: Tensor, image_size: tuple[int, int], shape: tuple[int, int], padded: Tensor) -> Tensor:
    """Return (N, cells) masks of one level; `padded` has a row per box."""
    down, y = _axis(boxes[:, 1], boxes[:, 3], image_size[0], shape[0])
    right, x = _axis(boxes[:, 0], boxes[:, 2], image_size[1], shape[1])
    covered = (down[:, :, None] * right[:, None, :]).flatten(1) * ~padded
    distance = (y[:, :, None] + x[:, None, :]).flatten(1).masked_fill(padded, torch.inf)
    nearest = nn.functional.one_hot(distance.argmin(1), padded.shape[1]) * ~padded
    total = covered.sum(1, keepdim=True)
    return torch.where(total > _TINY, covered / total.clamp(min=_TINY), nearest.to(covered.dtype))


def _axis(low: Tensor, high: Tensor, extent: int, cells: int) -> tuple[Tensor, Tensor]:
    """Return (N, cells) covered lengths in pixels, and squared distances of the cells' centres from the box's."""
    edges = torch.linspace(0, extent, cells + 1, device=low.device)
    covered = torch.minimum(high[:, None], edges[1:]) - torch.maximum(low[:, None], edges[:-1])
    distance = (low[:, None] + high[:, None] - edges[1:] - edges[:-1]) / 2
    return covered.clamp(min=0), distance.square()


def instance_masks(
    boxes: Sequence[Tensor],
    weights: Sequence[Tensor],
    image_size: tuple[int, int],
    spatial_shapes: Sequence[tuple[int, int]],
    padding: Tensor,
) -> Tensor:
    """Return (B, S) sums of the soft masks of each image's boxes, weighted by (N,) `weights` per image.

    The other arguments are those of `box_masks`.
    """
    return _weighted(box_masks(boxes, image_size, spatial_shapes, padding), weights)


def _weighted(masks: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    return torch.stack([(weight[:, None] * mask).sum(0) for weight, mask in zip(weights, masks, strict=True)])


def instance_features(
    tokens: Tensor,
    boxes: Sequence[Tensor],
    image_size: tuple[int, int],
    spatial_shapes: Sequence[tuple[int, int]],
    padding: Tensor,
) -> Tensor:
    """Return (N, D) mean tokens of all boxes of a batch, over all levels, from (B, S, D) tokens.

    The other arguments are those of `box_masks`.
    """
    tokens = tokens.masked_fill(padding[..., None], 0.0)
    masks = box_masks(boxes, image_size, spatial_shapes, padding)
    return torch.cat([mask @ row.float() for mask, row in zip(masks, tokens, strict=True)]) / len(spatial_shapes)


class InstanceAlignment(nn.Module):
    """Alignment of instances between the domains on the encoder's output, with a discriminator per level.

    *Temporal* means that the past of a track smooths its present. With `unit="instance"` a track's pooled feature and
    weight are blended with their past, with `unit="token"` its weight in the mask. Source and target are treated alike,
    because smooth features of one domain would reveal the domain.

    Args:
        dim: Length of a token.
        levels: Number of feature levels.
        unit: Input of the discriminators: every token under a mask, or each instance's mean token.
        hidden: Width of the discriminators.
        temporal: Whether to smooth tracks, if frames have time stamps.
        momentum: Share of the past in a blended value.
        max_gap: Longest time between neighbouring frames in seconds.
        max_frames: Frames in the bank; see `TrackBank` for its memory.

    Raises:
        ConfigError: `unit` is unknown.
    """

    def __init__(
        self,
        dim: int,
        levels: int,
        unit: Unit = "token",
        hidden: int = 256,
        temporal: bool = True,
        momentum: float = 0.5,
        max_gap: float = 2.0,
        max_frames: int = 4096,
    ) -> None:
        super().__init__()
        if unit not in get_args(Unit):
            message = f"unit must be one of {', '.join(get_args(Unit))}, got {unit!r}."
            raise ConfigError(message)
        self.unit = unit
        self.discriminators = nn.ModuleList(Discriminator(dim, hidden) for _ in range(levels))
        self.bank = TrackBank(momentum, max_gap=max_gap, max_frames=max_frames) if temporal else None

    def forward(
        self,
        features: AlignmentFeatures,
        targets: Sequence[Targets],
        image_size: tuple[int, int],
        domain: int,
        scale: float | Tensor = 1.0,
        frames: Sequence[Frame] | None = None,
        track_boxes: Sequence[Tensor] | None = None,
        labelled: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor], list[bool]]:
        """Return loss, accuracy and neighbours of a batch of one domain.

        Args:
            features: Features of one domain.
            targets: Labels or pseudo-labels per image; a box counts by its weight.
            image_size: Height and width of the batch in pixels, padding included.
            domain: 0 for source, 1 for target.
            scale: Scale of the reversed gradient.
            frames: Origins of the images; without them, or without their time, nothing is smoothed.
            track_boxes: (N, 4) boxes of the targets in coordinates that all frames of a recording share; by default
                the targets' own. Needed if augmentation moves the boxes of neighbouring frames apart.
            labelled: Whether the boxes are labels. With `unit="token"` an image whose labels all weigh one is then
                neither smoothed nor stored, because the past of a constant weight is the same.

        Returns:
            Mean loss over the levels; accuracy as `instance`, NaN without any box; whether the bank contained a
            neighbour, for each smoothed frame that has a time stamp.
        """
        padding = features.padding
        memory = features.encoder[-1].masked_fill(padding[:, :, None], 0.0)
        tokens = gradient_reversal(memory, scale)
        masks = box_masks([target.boxes for target in targets], image_size, features.spatial_shapes, padding)
        cells = [height * width for height, width in features.spatial_shapes]
        if self.unit == "token":
            rows, neighbours = self._token_rows(tokens, masks, cells, targets, frames, track_boxes, labelled)
        else:
            rows, neighbours = self._instance_rows(tokens, masks, cells, targets, frames, track_boxes)
        judged = [
            domain_loss(discriminator(row), domain, weight)
            for discriminator, (row, weight) in zip(self.discriminators, rows, strict=True)
        ]
        loss = torch.stack([loss for loss, _ in judged]).mean()
        return loss, {"instance": torch.stack([accuracy for _, accuracy in judged]).mean()}, neighbours

    def _token_rows(
        self, tokens: Tensor, masks: list[Tensor], cells: list[int], targets: Sequence[Targets], *where: Any
    ) -> tuple[Rows, list[bool]]:
        """Return the tokens under a mask with their shares of it, and the neighbours."""
        weights, neighbours = self._smooth([target.weights[:, None] for target in targets], targets, *where)
        mask = _weighted(masks, [weight[:, 0] for weight in weights])
        # Most tokens lie in no box; judging them all would cost as much as a layer of a small encoder.
        levels = zip(torch.split(tokens, cells, 1), torch.split(mask, cells, 1), strict=True)
        return [(token[share > 0], share[share > 0]) for token, share in levels], neighbours

    def _instance_rows(
        self, tokens: Tensor, masks: list[Tensor], cells: list[int], targets: Sequence[Targets], *where: Any
    ) -> tuple[Rows, list[bool]]:
        """Return each instance's mean token with its weight, and the neighbours."""
        pooled = [_pool(mask, row, cells) for mask, row in zip(masks, tokens, strict=True)]
        values = [torch.cat([pool, target.weights[:, None]], 1) for pool, target in zip(pooled, targets, strict=True)]
        smoothed, neighbours = self._smooth(values, targets, *where)
        joined = torch.cat(smoothed)
        rows, weights = joined[:, :-1], joined[:, -1]
        return [(row, weights) for row in rows.chunk(len(cells), 1)], neighbours

    def _smooth(
        self,
        values: list[Tensor],
        targets: Sequence[Targets],
        frames: Sequence[Frame] | None,
        track_boxes: Sequence[Tensor] | None,
        skip_ones: bool = False,
    ) -> tuple[list[Tensor], list[bool]]:
        """Return the (N, K) values per image blended with the past of their tracks, and the neighbours.

        Images whose values are all one are left out with `skip_ones`.
        """
        if self.bank is None:
            return values, []
        origins = [None] * len(values) if frames is None else frames
        boxes = [target.boxes for target in targets] if track_boxes is None else track_boxes
        blended, neighbours = [], []
        for frame, box, target, value in zip(origins, boxes, targets, values, strict=True):
            if skip_ones and bool((value == 1).all()):
                blended.append(value)
                continue
            neighbour = None if frame is None else self.bank.has_neighbour(frame)
            neighbours += [] if neighbour is None else [neighbour]
            blended.append(self.bank.blend(frame, box, target.labels, value))
        return blended, neighbours

    def commit(self) -> None:
        """Store the step's instances in the bank. Every process must call this once a step."""
        if self.bank is not None:
            self.bank.commit()

    def get_extra_state(self) -> dict[str, Any] | None:
        """Return the bank for the checkpoint, so that a resumed run equals an uninterrupted one."""
        return None if self.bank is None else self.bank.state_dict()

    def set_extra_state(self, state: dict[str, Any] | None) -> None:
        """Restore the bank."""
        if self.bank is not None and state is not None:
            self.bank.load_state_dict(state)


def _pool(mask: Tensor, tokens: Tensor, cells: list[int]) -> Tensor:
    """Return (N, levels * D) float32 mean tokens of each instance, level by level."""
    levels = zip(torch.split(mask, cells, 1), torch.split(tokens, cells), strict=True)
    with torch.autocast(tokens.device.type, enabled=False):
        return torch.cat([share @ token.float() for share, token in levels], 1)
