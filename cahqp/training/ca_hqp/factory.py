"""Modules of an adaptation, built for a teacher from the settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from cahqp.adaptation.domain_queries import DomainQueryAlignment, check_layers
from cahqp.adaptation.instances import InstanceAlignment
from cahqp.adaptation.prompt_metric import PromptMetric
from cahqp.adaptation.pseudo_labels import DynamicThresholds
from cahqp.adaptation.sfa_queries import SFAQueryAlignment
from cahqp.detectors import DINO
from cahqp.detectors.base import AlignmentShape, Detector
from cahqp.detectors.prompts.visual_prompt import VisualPrompt
from cahqp.errors import ConfigError
from cahqp.training.ca_hqp.settings import (
    AlignmentSettings,
    BatchNorm,
    PassMode,
    PromptSettings,
    PseudoLabelSettings,
    Trainable,
)

MAX_SCALED = 0.95
"""Limit of scaled thresholds; above it next to nothing would train."""

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def shape_of(detector: Detector) -> AlignmentShape:
    """Return the sizes of a teacher's features for alignment.

    Raises:
        ConfigError: The detector has none.
    """
    shape = detector.alignment_shape
    if shape is None:
        message = (
            f"{type(detector).__name__} exposes no features for alignment. Adapt a DINO, RTDETR or HuggingFaceDetector."
        )
        raise ConfigError(message)
    return shape


def attach_prompt(detector: Detector, settings: PromptSettings) -> None:
    """Attach a new prompt, keep training the one that the teacher carries, or freeze it if prompts are off.

    Raises:
        ConfigError: The settings differ from those of the prompt that the teacher carries.
    """
    if not settings.enabled:
        if detector.prompt is not None:
            detector.prompt.requires_grad_(False)
    elif detector.prompt is None:
        detector.prompt = build_prompt(detector, settings)
    else:
        check_carried(detector.prompt, settings)


def build_prompt(detector: Detector, settings: PromptSettings) -> VisualPrompt:
    """Return a new prompt, which does not change the detector's output.

    Raises:
        ConfigError: The prompt enters layers of another detector than DINO.
    """
    shape = shape_of(detector)
    if settings.places != ["input"] and not isinstance(detector, DINO):
        message = (
            f"prompt.places: {settings.places} needs a DINO teacher, got {kind_of(detector)}. Use places: [input]."
        )
        raise ConfigError(message)
    prompt = VisualPrompt(
        shape.input_dim,
        shape.input_levels,
        settings.prompt_dim,
        settings.components,
        settings.attention,
        settings.injection,
        shape.heads,
        settings.places,
        shape.encoder_layers,
        shape.decoder_layers,
        settings.control,
    )
    if isinstance(detector, DINO):
        prompt.copy_weights(detector.encoder, detector.decoder)
    return prompt


def kind_of(detector: Detector) -> str:
    """Return the name of a detector's kind, such as `DINO` or `deimv2`."""
    return str(getattr(detector, "kind", type(detector).__name__))


def check_carried(carried: VisualPrompt, settings: PromptSettings) -> None:
    """Check that the settings are those of the prompt that the teacher carries.

    Raises:
        ConfigError: Settings differ; the message lists all of them.
    """
    own = carried.describe()
    wrong = [
        f"prompt.{name} is {value}, the teacher's prompt has {own[name]}."
        for name, value in vars(settings).items()
        if name in own and value != own[name]
    ]
    if wrong:
        remedy = (
            "The settings of a trained prompt cannot change. Use its settings, or start from a teacher without a "
            "prompt (model.weights). With prompt.enabled: false the prompt stays in use and does not train."
        )
        raise ConfigError("\n".join([*wrong, remedy]))


def build_dqfa(detector: Detector, settings: AlignmentSettings) -> DomainQueryAlignment | SFAQueryAlignment | None:
    """Return the domain queries in the chosen form; `None` if DQFA is off.

    Raises:
        ConfigError: A layer does not exist; or the form is `sfa`, and the teacher is no DINO or carries prompts in the
            encoder.
    """
    if not settings.dqfa:
        return None
    if settings.dqfa_form == "sfa":
        return _build_sfa(detector, settings)
    shape = shape_of(detector)
    encoder = _existing_layers("encoder", settings.dqfa_layers, shape.encoder_layers)
    decoder = _existing_layers("decoder", settings.dqfa_layers, shape.decoder_layers)
    return DomainQueryAlignment(
        shape.dim, encoder, decoder, heads=shape.heads, hidden=shape.dim, memory=settings.dqfa_memory
    )


def _existing_layers(name: str, chosen: Sequence[int], count: int) -> list[int]:
    """Return the chosen layers from 0; a layer that first and last index both name is visited once."""
    check_layers(name, chosen, count)
    return list(dict.fromkeys(index % count for index in chosen))


def _build_sfa(detector: Detector, settings: AlignmentSettings) -> SFAQueryAlignment:
    if not isinstance(detector, DINO):
        message = f"alignment.dqfa_form: sfa copies layers of DINO, got {kind_of(detector)}. Use dqfa_form: dense."
        raise ConfigError(message)
    if detector.prompt is not None and detector.prompt.encoder_ways:
        message = (
            "alignment.dqfa_form: sfa uses copies of the encoder's layers, which do not see the prompts that the "
            "teacher has there. Use dqfa_form: dense, or a teacher without prompts and other prompt.places."
        )
        raise ConfigError(message)
    dim = detector.alignment_shape.dim
    return SFAQueryAlignment(
        detector.encoder, detector.decoder, dim, settings.dqfa_layers, hidden=dim, memory=settings.dqfa_memory
    )


def build_tiafa(detector: Detector, settings: AlignmentSettings) -> InstanceAlignment | None:
    """Return the alignment of instances; `None` if TIAFA is off."""
    if not settings.tiafa:
        return None
    shape = shape_of(detector)
    return InstanceAlignment(
        shape.dim,
        shape.levels,
        settings.unit,
        hidden=shape.dim,
        temporal=settings.temporal,
        momentum=settings.momentum,
        max_gap=settings.max_gap,
        max_frames=settings.remembered_frames,
    )


def build_metric(detector: Detector, settings: PromptSettings) -> PromptMetric | None:
    """Return the metric term on the prompt's components; `None` if it is off.

    Raises:
        ConfigError: Prompts are off, or the encoder's input and output differ in width.
    """
    if not settings.metric:
        return None
    if not settings.enabled:
        message = f"prompt.metric: {settings.metric} needs prompt.enabled: true; without a prompt set it to 0."
        raise ConfigError(message)
    shape = shape_of(detector)
    if shape.input_dim != shape.dim:
        message = (
            f"prompt.metric: {settings.metric} needs an encoder whose input is as wide as its output, got "
            f"{shape.input_dim} and {shape.dim} channels. Set it to 0."
        )
        raise ConfigError(message)
    return PromptMetric(len(detector.classes), shape.dim)


def build_thresholds(detector: Detector, settings: PseudoLabelSettings) -> DynamicThresholds:
    """Return the lowest scores per class that train; they change only with `dynamic: true`.

    Raises:
        ConfigError: Thresholds are missing for some or all classes.
    """
    own, threshold = detector.thresholds, settings.threshold
    if threshold is None and not own:
        message = "The teacher's file contains no operating thresholds: set pseudo_labels.threshold, such as 0.3."
        raise ConfigError(message)
    scaled = {name: min(settings.threshold_scale * value, max(MAX_SCALED, value)) for name, value in own.items()}
    chosen = scaled if threshold is None else threshold
    per_class = chosen if isinstance(chosen, dict) else dict.fromkeys(detector.classes, chosen)
    if set(per_class) != set(detector.classes):
        classes = ", ".join(detector.classes)
        message = f"pseudo_labels.threshold must name every class of the teacher ({classes}), got {threshold}."
        raise ConfigError(message)
    minimum, maximum = settings.dynamic_range
    return DynamicThresholds(
        len(detector.classes),
        torch.tensor([per_class[name] for name in detector.classes]),
        settings.dynamic_momentum,
        settings.dynamic_factor,
        minimum,
        maximum,
    )


def enable_checkpointing(detector: Detector) -> None:
    """Let a teacher recompute activations in the backward pass.

    Raises:
        ConfigError: The teacher cannot.
    """
    if not isinstance(detector, DINO):
        message = f"activation_checkpointing: true needs a DINO teacher, got {kind_of(detector)}. Set it to false."
        raise ConfigError(message)
    detector.activation_checkpointing = True


def choose_trainable(detector: Detector, trainable: Trainable) -> None:
    """Freeze the teacher's parameters that `trainable` leaves out; frozen parameters stay frozen."""
    if trainable == "all":
        return
    backbone = {id(p) for p in detector.backbone_parameters()}
    norms = {id(p) for m in detector.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    for name, parameter in detector.named_parameters():
        selected = (
            name.startswith("prompt.")
            or (trainable == "prompts+norms" and id(parameter) in norms)
            or (trainable == "prompts+transformer" and id(parameter) not in backbone)
        )
        parameter.requires_grad_(selected and parameter.requires_grad)


def check_source_free(labels: PseudoLabelSettings, batch_norm: BatchNorm, domain_passes: PassMode) -> None:
    """Check that no setting needs labelled source frames.

    Raises:
        ConfigError: Some settings do; the message lists all of them.
    """
    wrong = []
    if not labels.weight:
        wrong.append("pseudo_labels.weight: 0 leaves no loss")
    if labels.dynamic:
        wrong.append("pseudo_labels.dynamic: true needs the learner's scores on source frames")
    if batch_norm == "source":
        wrong.append("batch_norm: source needs source frames")
    if domain_passes == "joint":
        wrong.append("domain_passes: joint needs frames of both domains")
    if wrong:
        message = f"data.source is empty, but {'; '.join(wrong)}. Set data.source, or change these settings."
        raise ConfigError(message)
