"""Object detectors of transformers, with the criterion and model files of cahqp. Needs the extra `hf`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cahqp.detectors.base import AlignmentFeatures, AlignmentShape, Detector, Output
from cahqp.detectors.huggingface.families import (
    family_of,
    new_model,
    read_config,
    read_preprocessing,
    read_weights,
    set_classes,
)
from cahqp.detectors.huggingface.features import captured_features, projections
from cahqp.detectors.huggingface.unions import ClassUnions
from cahqp.detectors.layers.denoising import DenoisingQueries, denoising_queries
from cahqp.detectors.published.class_mapping import VOC_NAMES
from cahqp.errors import ConfigError
from cahqp.structures import Preprocessing, Targets, valid_sizes

EPS = 1e-5  # of the inverse sigmoid of noised boxes, as in transformers
_log = logging.getLogger(__name__)


@cache
def _warn_once(text: str) -> None:
    _log.warning(text)


class HuggingFaceDetector(Detector):
    """DETR of transformers with a sigmoid per class, trained with cahqp's criterion. `FAMILIES` lists the kinds.

    The losses of transformers are not used: here boxes have weights, batches may be empty, counts and denoising queries
    cover all ranks, and noise depends on the image alone.

    Args:
        classes: Class names in the order of their indices. A class that the model has by name keeps its row in every
            head; others start untrained.
        class_from: Classes of the model that make up a class, such as `vehicle: [car, bus, truck]`. The class scores as
            the best of them.
        model: A folder written by `save_pretrained`, read without a network, or a name on the hub.
        config: Settings of the model's configuration with its `model_type`, instead of `model`; weights are random.
        pretrained: Read the weights of `model`; otherwise only its configuration.
        size: Height and width in pixels; by default those of the model's image processor. Without a processor it is
            640x640 unnormalised for RT-DETR, D-FINE and DEIMv2, and with ImageNet statistics 560x560 for RF-DETR and a
            short side of 800 for Deformable, Conditional and DAB-DETR.
        max_detections: Detections kept per image.
        nms_iou: IoU above which the lower-scored of two detections of one class is dropped; by default none is, as
            published. One-to-one matching teaches not to repeat an object, but only in a long training.

    Attributes:
        left_out: Parts of the published training that are missing here; logged once.
        untrained_classes: Classes without published weights.

    Raises:
        ConfigError: The model is of an unsupported kind, or cannot be read.
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
        class_from: dict[str, list[str]] | None = None,
    ) -> None:
        published = read_config(model, config)
        family = family_of(published)
        rule = read_preprocessing(model, family)
        if size is not None:
            rule = Preprocessing((size[0], size[1]), None, None, rule.mean, rule.std)
        if rule.size is not None and any(side % family.stride for side in rule.size):
            message = f"size must be multiples of {family.stride} for {published.model_type}, got {list(rule.size)}."
            raise ConfigError(message)
        super().__init__(classes, rule, family.class_loss, max_detections, nms_iou)
        self.family, self.left_out = family, family.left_out
        self.unions = ClassUnions(self.classes, class_from)
        own = set_classes(published, self.unions.rows)
        self.kind: str = own.model_type
        self.queries: int = own.num_queries * max(1, getattr(own, "num_patterns", 0))
        self.model: Any = new_model(own, family)
        self.untrained_classes = self.classes
        if model is not None and pretrained:
            missing = read_weights(model, published, self.model, self.unions.rows, family)
            self.untrained_classes = self.unions.untrained(missing)
            self.provenance = {"started_from": model, "untrained_classes": list(self.untrained_classes)}
            if self.untrained_classes:
                _warn_once(f"{model} does not know {', '.join(self.untrained_classes)}: they start untrained.")
        if self.left_out:
            _warn_once(f"{self.kind} trains without {' and without '.join(self.left_out)}.")
        self.settings = {
            "classes": list(self.classes),
            "model": None,
            "config": json.loads(json.dumps(own.to_dict())),  # as a model file returns it
            "pretrained": False,
            "size": None,
            "max_detections": max_detections,
            "nms_iou": nms_iou,
            "class_from": class_from,
        }

    @property
    def alignment_shape(self) -> AlignmentShape:
        """Sizes of the features for alignment."""
        config, base = self.model.config, self.model.model
        heads = getattr(config, "decoder_attention_heads", None) or config.decoder_self_attention_heads
        dim = getattr(config, "d_model", None) or config.hidden_size
        return AlignmentShape(
            input_dim=getattr(config, "encoder_hidden_dim", dim),
            input_levels=len(projections(base, self.family)),
            dim=dim,
            levels=getattr(config, "num_feature_levels", 1),
            heads=heads,
            encoder_layers=len(base.encoder.layers) if self.family.encoder_layers else 1,
            decoder_layers=len(base.decoder.layers),
        )

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that usually train with a smaller learning rate."""
        return list(attrgetter(self.family.backbone)(self.model.model).parameters())

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the encoder; in RF-DETR those of the projector, which takes its place."""
        base = self.model.model
        encoder = getattr(base, "encoder", None) or attrgetter(self.family.projections)(base)
        return list(encoder.parameters())

    def forward(
        self, images: Tensor, padding_mask: Tensor | None = None, targets: list[Targets] | None = None
    ) -> Output:
        """Detect; see `Detector.forward`.

        Raises:
            ConfigError: An image is padded, and the model takes no padding.
        """
        if padding_mask is None:
            padding_mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
        elif not self.family.takes_padding and padding_mask.any():
            message = f"{self.kind} takes no padded images. Give the detector a fixed size."
            raise ConfigError(message)
        sizes = valid_sizes(padding_mask)
        noised = self._denoising_queries(targets, sizes)
        prompt = None if self.prompt is None else partial(self._inject_prompt, padding_mask)
        with captured_features(self.model.model, self.family, prompt) as captured, self._denoised(noised):
            rows, boxes, groups, proposals = self._predict(images, (~padding_mask).long())
        logits = self.unions.join(rows)
        padding = torch.cat([_resize_mask(padding_mask, shape).flatten(1) for shape in captured.shapes], 1)
        decoder = [queries[:, : queries.shape[1] // groups] for queries in captured.decoder]
        features = AlignmentFeatures(captured.maps, captured.encoder, decoder, captured.shapes, padding)
        output = Output.from_layers(logits, boxes.float(), noised, sizes, features)
        output.groups, (proposal_rows, output.encoder_boxes) = groups, proposals
        output.encoder_logits = None if proposal_rows is None else self.unions.join(proposal_rows)
        return output

    def _inject_prompt(self, padding_mask: Tensor, maps: list[Tensor], projected: list[Tensor]) -> list[Tensor]:
        assert self.prompt is not None
        masks = [_resize_mask(padding_mask, m.shape[-2:]) for m in maps]
        features: list[Tensor] = self.prompt(maps, masks, projected).features
        return features

    def _denoising_queries(self, targets: list[Targets] | None, sizes: Tensor) -> DenoisingQueries | None:
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
    def _denoised(self, noised: DenoisingQueries | None) -> Iterator[None]:
        """Insert denoising queries before the decoder's others inside the block."""
        hook = self.model.model.decoder.register_forward_pre_hook(
            lambda _, args, kwargs: (args, self._prepend_denoising(kwargs, noised)), with_kwargs=True
        )
        try:
            yield
        finally:
            hook.remove()

    def _prepend_denoising(self, kwargs: dict[str, Any], noised: DenoisingQueries | None) -> dict[str, Any]:
        """Return the decoder's arguments with denoising queries before the others."""
        table = getattr(self.model.model, "denoising_class_embed", None)
        if table is None or not self.training:
            return kwargs
        # The table takes part in every step, so that no rank lacks its gradient.
        content = kwargs["inputs_embeds"] + 0.0 * table.weight.sum()
        if noised is None:
            return {**kwargs, "inputs_embeds": content}
        mask = noised.attention_mask(content.shape[1])
        return {
            **kwargs,
            "inputs_embeds": torch.cat([table(self.unions.first_rows(noised.labels)).to(content.dtype), content], 1),
            "reference_points": torch.cat([noised.boxes.to(content.dtype), kwargs["reference_points"]], 1),
            "encoder_attention_mask": torch.zeros_like(mask, dtype=torch.float).masked_fill(mask, -torch.inf),
        }

    def _predict(
        self, images: Tensor, pixel_mask: Tensor
    ) -> tuple[Tensor, Tensor, int, tuple[Tensor, Tensor] | tuple[None, None]]:
        """Return logits (K, B, Q, rows) and boxes of all layers, the number of groups, and the proposals."""
        if self.kind in ("rt_detr", "rt_detr_v2", "d_fine", "deimv2"):
            out = self.model(images)
            layers = [values.transpose(0, 1) for values in (out.intermediate_logits, out.intermediate_reference_points)]
            return layers[0], layers[1], 1, (out.enc_topk_logits, out.enc_topk_bboxes)
        predictions: list[Any] = []

        def capture_loss_inputs(*args: Any) -> tuple[None, None, None]:
            # logits, labels, device, boxes, config, then all layers and, in RF-DETR, the proposals
            predictions.extend(args[5:])
            return None, None, None

        self.model.loss_function = capture_loss_inputs
        try:
            self.model(images, pixel_mask=pixel_mask, labels=[])
        finally:
            del self.model._loss_function
        logits, boxes, *proposals = predictions
        groups = logits.shape[2] // self.queries
        if proposals:  # in the same groups, so they are stacked as one more layer
            logits = torch.cat([proposals[0][None], logits])
            boxes = torch.cat([proposals[1][None], boxes.expand(len(logits) - 1, -1, -1, -1)])
        return _stack_groups(logits, groups), _stack_groups(boxes, groups), groups, (None, None)


def from_folder(path: Path) -> HuggingFaceDetector:
    """Return the detector that `save_pretrained` wrote, with all its classes, in eval mode.

    Args:
        path: Folder with `config.json` and the weights; nothing is downloaded.

    Raises:
        ConfigError: The model is of an unsupported kind, or cannot be read.
        WeightsError: Its weights do not fit its configuration.
    """
    rows = sorted((int(row), name) for row, name in read_config(str(path), None).id2label.items())
    names = dict.fromkeys(VOC_NAMES.get(name, name) for _, name in rows if name != "N/A")  # unused rows of COCO
    return HuggingFaceDetector(list(names), str(path)).eval()


def _resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    return nn.functional.interpolate(mask[:, None].float(), size=tuple(size))[:, 0].bool()


def _stack_groups(values: Tensor, groups: int) -> Tensor:
    """Return (K * groups, B, Q, D) for (K, B, groups * Q, D); the last is the first group of the last layer."""
    return torch.stack(values.chunk(groups, 2), 1).flip(1).flatten(0, 1)
