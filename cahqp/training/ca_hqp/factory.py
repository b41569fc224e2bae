"""The parts of an adaptation, built for a teacher from the settings."""

from __future__ import annotations

import torch
from torch import nn

from cahqp.adaptation import (
    DomainQueryAlignment,
    DynamicThresholds,
    InstanceAlignment,
    PromptMetric,
    SFAQueryAlignment,
    VisualPrompt,
)
from cahqp.detectors import DINO
from cahqp.errors import ConfigError
from cahqp.training.ca_hqp.settings import (
    AlignmentSettings,
    BatchNorm,
    Passes,
    PromptSettings,
    PseudoLabelSettings,
    Trainable,
)

_MOST = 0.95  # being surer raises no threshold beyond it, where nothing would train
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def _heads(detector: DINO) -> int:
    heads: int = detector.settings["heads"]
    return heads


def build_prompt(detector: DINO, settings: PromptSettings) -> VisualPrompt:
    """Return a prompt that changes nothing yet."""
    levels, dim = detector.level_embed.shape
    prompt = VisualPrompt(
        dim,
        levels,
        settings.prompt_dim,
        settings.components,
        settings.attention,
        settings.injection,
        _heads(detector),
        settings.places,
        len(detector.encoder),
        len(detector.decoder),
        settings.control,
    )
    prompt.copy_weights(detector.encoder, detector.decoder)
    return prompt


def check_carried(carried: VisualPrompt, settings: PromptSettings) -> None:
    """Refuse settings of a prompt that differ from those of the prompt which the teacher carries.

    Raises:
        ConfigError: Some do.
    """
    own = carried.describe()
    wrong = [
        f"prompt.{name} is {asked}, the teacher's prompt has {own[name]}."
        for name, asked in vars(settings).items()
        if name in own and asked != own[name]
    ]
    if wrong:
        remedy = (
            "A prompt stays as it was made: take its settings, or start from a teacher without a prompt "
            "(model.weights). With prompt.enabled: false it stays in use and does not train."
        )
        raise ConfigError("\n".join([*wrong, remedy]))


def build_dqfa(detector: DINO, settings: AlignmentSettings) -> DomainQueryAlignment | SFAQueryAlignment | None:
    """Return the domain queries of the form that is asked for; `None` where DQFA is off.

    Raises:
        ConfigError: The form is SFA's, and the teacher carries prompts in the encoder.
    """
    if not settings.dqfa:
        return None
    dim, layers = detector.level_embed.shape[1], settings.dqfa_layers
    if settings.dqfa_form == "sfa":
        if isinstance(detector.prompt, VisualPrompt) and detector.prompt.encoder_ways:
            message = (
                "alignment.dqfa_form: sfa goes through copies of the encoder's layers, which do not see the prompts "
                "that the teacher has there. Take dqfa_form: dense, or start without prompts and choose other "
                "prompt.places."
            )
            raise ConfigError(message)
        return SFAQueryAlignment(detector.encoder, detector.decoder, dim, layers, hidden=dim)
    return DomainQueryAlignment(dim, layers, layers, heads=_heads(detector), hidden=dim)


def build_tiafa(detector: DINO, settings: AlignmentSettings) -> InstanceAlignment | None:
    """Return the alignment of instances; `None` where TIAFA is off."""
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
    """Return the metric term on the prompt's components; `None` where it is off.

    Raises:
        ConfigError: There is no prompt for it.
    """
    if not settings.metric:
        return None
    if not settings.enabled:
        message = f"prompt.metric: {settings.metric} needs prompt.enabled: true, or it has no components to draw."
        raise ConfigError(message)
    return PromptMetric(len(detector.classes), detector.level_embed.shape[1])


def build_thresholds(detector: DINO, settings: PseudoLabelSettings) -> DynamicThresholds:
    """Return the lowest scores that train, per class; they move only where `dynamic` asks for it.

    Raises:
        ConfigError: There are no thresholds, or not for every class.
    """
    own, threshold = detector.thresholds, settings.threshold
    if threshold is None and not own:
        message = "The teacher's file holds no operating thresholds: give pseudo_labels.threshold, such as 0.3."
        raise ConfigError(message)
    threshold_scale = {name: min(settings.threshold_scale * value, max(_MOST, value)) for name, value in own.items()}
    given = threshold_scale if threshold is None else threshold
    per_class = given if isinstance(given, dict) else dict.fromkeys(detector.classes, given)
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
    """Stop training of the teacher's parameters whatever is not named; what is frozen already stays so."""
    if trainable == "all":
        return
    norms = {id(p) for m in detector.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    for name, parameter in detector.named_parameters():
        wanted = (
            name.startswith("prompt.")
            or (trainable == "prompts+norms" and id(parameter) in norms)
            or (trainable == "prompts+transformer" and not name.startswith("backbone."))
        )
        parameter.requires_grad_(wanted and parameter.requires_grad)


def check_source_free(labels: PseudoLabelSettings, batch_norm: BatchNorm, passes: Passes) -> None:
    """Refuse settings that need labelled source frames, all together.

    Raises:
        ConfigError: Some do.
    """
    wrong = []
    if not labels.weight:
        wrong.append("pseudo_labels.weight: 0 leaves nothing to learn from")
    if labels.dynamic:
        wrong.append("pseudo_labels.dynamic: true follows the learner on labelled source frames")
    if batch_norm == "source":
        wrong.append("batch_norm: source leaves the buffers to frames that are not there")
    if passes == "joint":
        wrong.append("passes: joint has nothing to join")
    if wrong:
        message = f"No data.source is given, but {'; '.join(wrong)}. Give data.source, or change these."
        raise ConfigError(message)
