"""Detectors of transformers as students: theirs forward, our criterion, our files. Needs the extra `hf`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from cahqp.detectors.base import DenoisingOutput, Detector, Features, Output, check_classes, check_nms_iou
from cahqp.detectors.huggingface.families import (
    family_of,
    new_model,
    read_config,
    read_preprocessing,
    read_weights,
    with_classes,
)
from cahqp.detectors.layers.basic import to_tokens
from cahqp.detectors.layers.denoising import DenoisingQueries, denoising_queries
from cahqp.errors import ConfigError
from cahqp.structures import Preprocessing, Targets, valid_sizes

EPS = 1e-5  # of the inverse sigmoid of noised boxes, as in their code
_log = logging.getLogger(__name__)


@cache
def _say(text: str) -> None:
    """Log a warning, once in a process."""
    _log.warning(text)


@dataclass
class _Heard:
    """What passed through a model beside its output: the maps, and what the decoder was called with."""

    maps: list[Tensor] = field(default_factory=list)
    tokens: Tensor = field(default_factory=lambda: torch.zeros(0))
    shapes: list[tuple[int, int]] = field(default_factory=list)


class HuggingFaceDetector(Detector):
    """RT-DETR, RT-DETRv2, D-FINE, RF-DETR or Deformable DETR of transformers, trained with our criterion.

    Their own losses are not used: boxes have weights, batches may be empty, and counts and denoising queries go over
    all ranks, with noise that is a function of each image.

    Args:
        classes: Class names in the order of their indices. One that the model knows by name keeps its row in every
            head; others start untrained.
        model: A folder written by `save_pretrained`, which is read without a network, or a name on the hub.
        config: Settings of the model's configuration, with its `model_type`, instead: random weights.
        pretrained: Read the weights of `model`; otherwise its configuration alone.
        size: Height and width in pixels, where not those of the model's image processor. Without a processor it is
            640x640 unnormalised for RT-DETR and D-FINE, 560x560 for RF-DETR, and a short side of 800 for Deformable
            DETR, these two with ImageNet statistics.
        max_detections: Detections kept per image.
        nms_iou: Overlap above which the lower-scored of two detections of one class is dropped; the published models
            keep both. Matching one query to one box teaches not to say an object twice, but a short training ends
            before that is learnt.

    Attributes:
        left_out: What the published training has beside our criterion; said once in the log.
        untrained_classes: Classes that the weights did not know.

    Raises:
        ConfigError: The model is of another kind, or cannot be read.
        WeightsError: Its weights do not fit its configuration.
    """

    def __init__(
        self,
        classes: list[str],
        model: str | None = None,
        config: dict[str, Any] | None = None,
        pretrained: bool = True,
        size: tuple[int, int] | None = None,
        max_detections: int = 300,
        nms_iou: float | None = None,
    ) -> None:
        super().__init__()
        self.classes = check_classes(classes)
        published = read_config(model, config)
        self.family = family_of(published)
        found = read_preprocessing(model, self.family)
        self.preprocessing = (
            found if size is None else Preprocessing((size[0], size[1]), None, None, found.mean, found.std)
        )
        self.class_loss, self.max_detections = self.family.class_loss, max_detections
        self.nms_iou = check_nms_iou(nms_iou)
        self.left_out = self.family.left_out
        own = with_classes(published, self.classes)
        self.kind: str = own.model_type
        self.queries: int = own.num_queries
        self.model: Any = new_model(own)
        self.untrained_classes = self.classes
        if model is not None and pretrained:
            self.untrained_classes = read_weights(model, published, self.model, self.classes)
            self.provenance = {"started_from": model, "untrained_classes": list(self.untrained_classes)}
            if self.untrained_classes:
                _say(f"{model} does not know {', '.join(self.untrained_classes)}: they start untrained.")
        if self.left_out:
            _say(f"{self.kind} trains without {' and without '.join(self.left_out)}.")
        self.settings = {
            "classes": list(self.classes),
            "model": None,
            "config": json.loads(json.dumps(own.to_dict())),  # as a model file gives it back
            "pretrained": False,
            "size": None,
            "max_detections": max_detections,
            "nms_iou": nms_iou,
        }

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that usually train with a smaller learning rate."""
        return list(self.model.model.backbone.parameters())

    def forward(
        self, images: Tensor, padding_mask: Tensor | None = None, targets: list[Targets] | None = None
    ) -> Output:
        """Detect; see `Detector.forward`.

        Raises:
            ConfigError: An image is padded, and the model takes none.
        """
        if padding_mask is None:
            padding_mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
        elif not self.family.takes_padding and padding_mask.any():
            message = f"{self.kind} takes no padded images: give the detector a size."
            raise ConfigError(message)
        sizes = valid_sizes(padding_mask)
        noised = self._noised(targets, sizes)
        with self._listening(noised) as heard:
            logits, boxes, groups, proposals = self._ask(images, (~padding_mask).long())
        output = self._output(logits, boxes, noised, sizes, heard, padding_mask)
        return replace(output, groups=groups, encoder_logits=proposals[0], encoder_boxes=proposals[1])

    def _noised(self, targets: list[Targets] | None, sizes: Tensor) -> DenoisingQueries | None:
        """Return denoising queries in training, for the kinds that are trained with them."""
        config = self.model.config
        number = getattr(config, "num_denoising", 0)
        if not self.training or targets is None or not number:
            return None
        return denoising_queries(
            targets, sizes, len(self.classes), number=number, label_noise=config.label_noise_ratio,
            box_noise=config.box_noise_scale, eps=EPS,
        )  # fmt: skip

    @contextmanager
    def _listening(self, noised: DenoisingQueries | None) -> Iterator[_Heard]:
        """Note what goes into the decoder, and put denoising queries before it."""
        heard, base = _Heard(), self.model.model

        def note(_: nn.Module, __: Any, out: Tensor) -> None:
            heard.maps.append(out)
            _in_plain_memory(_, __, out)

        def before(_: nn.Module, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            heard.tokens = named["encoder_hidden_states"]
            heard.shapes = [(int(height), int(width)) for height, width in named["spatial_shapes_list"]]
            return given, self._with_denoising(named, noised)

        found = attrgetter(self.family.projections)(base)
        hooks = [one.register_forward_hook(note) for one in (found if isinstance(found, nn.ModuleList) else [found])]
        hooks += [one.register_forward_hook(_in_plain_memory) for one in getattr(base, "decoder_input_proj", [])]
        hooks.append(base.decoder.register_forward_pre_hook(before, with_kwargs=True))
        try:
            yield heard
        finally:
            for hook in hooks:
                hook.remove()

    def _with_denoising(self, named: dict[str, Any], noised: DenoisingQueries | None) -> dict[str, Any]:
        """Return the decoder's arguments with denoising queries before the others."""
        table = getattr(self.model.model, "denoising_class_embed", None)
        if table is None or not self.training:
            return named
        # The table takes part in every step, so that no rank lacks its gradient.
        content = named["inputs_embeds"] + 0.0 * table.weight.sum()
        if noised is None:
            return {**named, "inputs_embeds": content}
        barred = noised.attention_mask(content.shape[1])
        return {
            **named,
            "inputs_embeds": torch.cat([table(noised.labels).to(content.dtype), content], 1),
            "reference_points": torch.cat([noised.boxes.to(content.dtype), named["reference_points"]], 1),
            "encoder_attention_mask": torch.zeros_like(barred, dtype=torch.float).masked_fill(barred, -torch.inf),
        }

    def _ask(
        self, images: Tensor, pixel_mask: Tensor
    ) -> tuple[Tensor, Tensor, int, tuple[Tensor, Tensor] | tuple[None, None]]:
        """Return logits (K, B, Q, C) and boxes of all layers, the number of groups, and the proposals."""
        if self.kind in ("rt_detr", "rt_detr_v2", "d_fine"):
            found = self.model(images)
            logits, boxes = (
                found.intermediate_logits.transpose(0, 1),
                found.intermediate_reference_points.transpose(0, 1),
            )
            return logits, boxes, 1, (found.enc_topk_logits, found.enc_topk_bboxes)
        predictions: list[Any] = []

        def instead_of_loss(*given: Any) -> tuple[None, None, None]:
            # logits, labels, device, boxes, config, then all layers and, in RF-DETR, the proposals
            predictions.extend(given[5:])
            return None, None, None

        self.model.loss_function = instead_of_loss
        try:
            self.model(images, pixel_mask=pixel_mask, labels=[])
        finally:
            del self.model._loss_function
        logits, boxes, *proposals = predictions
        groups = logits.shape[2] // self.queries
        if proposals:  # they come in the same groups, and so they are layers like the others
            logits = torch.cat([proposals[0][None], logits])
            boxes = torch.cat([proposals[1][None], boxes.expand(len(logits) - 1, -1, -1, -1)])
        return _side_by_side(logits, groups), _side_by_side(boxes, groups), groups, (None, None)

    def _output(
        self,
        logits: Tensor,
        boxes: Tensor,
        noised: DenoisingQueries | None,
        sizes: Tensor,
        heard: _Heard,
        padding: Tensor,
    ) -> Output:
        """Return what was found, denoising queries apart."""
        start = 0 if noised is None else noised.labels.shape[1]
        boxes = boxes.float()
        denoising = None
        if noised is not None:
            denoising = DenoisingOutput(logits[:, :, :start], boxes[:, :, :start], noised.groups, noised.slots)
        logits, boxes = logits[:, :, start:], boxes[:, :, start:]
        empty = torch.cat(
            [
                to_tokens(nn.functional.interpolate(padding[:, None].float(), size=shape))[..., 0].bool()
                for shape in heard.shapes
            ],
            1,
        )
        features = Features(heard.maps, [heard.tokens], [], heard.shapes, empty)
        return Output(logits[-1], boxes[-1], logits[:-1], boxes[:-1], None, None, sizes, features, denoising)


def _in_plain_memory(_: nn.Module, __: Any, out: Tensor) -> None:
    """Hand a projection its gradient in memory as its sizes say.

    Their maps become tokens by `flatten(2).transpose(1, 2)`; `to_tokens` tells what that does to a BatchNorm on the CPU
    where a batch has one image.
    """
    if out.requires_grad:
        out.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: gradient.clone(memory_format=torch.contiguous_format)
        )


def _side_by_side(values: Tensor, groups: int) -> Tensor:
    """Return (K * groups, B, Q, D) for (K, B, groups * Q, D); the last is the first group's of the last layer."""
    parts = torch.stack(values.chunk(groups, 2), 1).flip(1)
    return parts.flatten(0, 1)
