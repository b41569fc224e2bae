"""Modules of an adaptation, built for a teacher from the settings."""

from __future__ import annotations

import torch
from torch import nn

from cahqp.adaptation.domain_queries import DomainQueryAlignment
from cahqp.adaptation.instances import InstanceAlignment
from cahqp.adaptation.prompt_metric import PromptMetric
from cahqp.adaptation.pseudo_labels import DynamicThresholds
from cahqp.adaptation.sfa_queries import SFAQueryAlignment
from cahqp.detectors import DINO
from cahqp.detectors.base import Detector
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


def attach_prompt(detector: DINO, settings: PromptSettings) -> None:
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


def build_prompt(detector: DINO, settings: PromptSettings) -> VisualPrompt:
    """Return a new prompt, which does not change the detector's output."""
    levels, dim = detector.level_embed.shape
    prompt = VisualPrompt(
        dim,
        levels,
        settings.prompt_dim,
        settings.components,
        settings.attention,
        settings.injection,
        detector.settings["heads"],
        settings.places,
        len(detector.encoder),
        len(detector.decoder),
        settings.control,
    )
    prompt.copy_weights(detector.encoder, detector.decoder)
    return prompt


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


def build_dqfa(detector: DINO, settings: AlignmentSettings) -> DomainQueryAlignment | SFAQueryAlignment | None:
    """Return the domain queries in the chosen form; `None` if DQFA is off.

    Raises:
        ConfigError: The form is `sfa`, and the teacher carries prompts in the encoder.
    """
    if not settings.dqfa:
        return None
    dim, layers = detector.level_embed.shape[1], settings.dqfa_layers
    if settings.dqfa_form == "sfa":
        if detector.prompt is not None and detector.prompt.encoder_ways:
            message = (
                "alignment.dqfa_form: sfa uses copies of the encoder's layers, which do not see the prompts that the "
                "teacher has there. Use dqfa_form: dense, or a teacher without prompts and other prompt.places."
            )
            raise ConfigError(message)
        return SFAQueryAlignment(detector.encoder, detector.decoder, dim, layers, hidden=dim)
    return DomainQueryAlignment(dim, layers, layers, heads=detector.settings["heads"], hidden=dim)


def build_tiafa(detector: DINO, settings: AlignmentSettings) -> InstanceAlignment | None:
    """Return the alignment of instances; `None` if TIAFA is off."""
    if not settings.tiafa:
        return None
    levels, dim = detector.level_embed.shape
    return InstanceAlignment(
        dim,
        levels,
        settings.unit,
        hidden=dim,
        temporal=settings.temporal,
        momentum=settings.momentum,
        max_gap=settings.max_gap,
        max_frames=settings.remembered_frames,
    )


def build_metric(detector: DINO, settings: PromptSettings) -> PromptMetric | None:
    """Return the metric term on the prompt's components; `None` if it is off.

    Raises:
        ConfigError: Prompts are off.
    """
    if not settings.metric:
        return None
    if not settings.enabled:
        message = f"prompt.metric: {settings.metric} needs prompt.enabled: true; without a prompt set it to 0."
        raise ConfigError(message)
    return PromptMetric(len(detector.classes), detector.level_embed.shape[1])


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


def choose_trainable(detector: DINO, trainable: Trainable) -> None:
    """Freeze the teacher's parameters that `trainable` leaves out; frozen parameters stay frozen."""
    if trainable == "all":
        return
    norms = {id(p) for m in detector.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    for name, parameter in detector.named_parameters():
        selected = (
            name.startswith("prompt.")
            or (trainable == "prompts+norms" and id(parameter) in norms)
            or (trainable == "prompts+transformer" and not name.startswith("backbone."))
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
