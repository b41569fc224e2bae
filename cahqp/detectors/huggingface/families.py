"""What is read of transformers' object detectors: which are known, their weights, classes and preprocessing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cahqp.detectors.published.class_mapping import VOC_NAMES
from cahqp.errors import ConfigError, WeightsError
from cahqp.structures import Preprocessing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PROCESSOR = "preprocessor_config.json"
SQUARE: dict[str, Any] = {"size": (640, 640)}


@dataclass(frozen=True)
class Family:
    """What one kind of detector needs to be told.

    Attributes:
        class_loss: Of our criterion, in training.
        projections: Name in the model of what makes the maps that enter the encoder.
        preprocessing: Where the model brings none.
        takes_padding: Whether images of several sizes may share a batch.
        left_out: What the published training has beside our criterion.
    """

    class_loss: str
    projections: str
    preprocessing: Mapping[str, Any]
    takes_padding: bool = False
    left_out: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "rt_detr": Family("varifocal", "encoder_input_proj", SQUARE),
    "rt_detr_v2": Family("varifocal", "encoder_input_proj", SQUARE),
    "d_fine": Family(
        "varifocal",
        "encoder_input_proj",
        SQUARE,
        left_out=("FGL, on the distributions of edges", "DDF, which distils the last layer into the others"),
    ),
    "rf_detr": Family(
        "varifocal",
        "backbone.projector",
        {"size": (560, 560), **IMAGENET},
        takes_padding=True,
        left_out=("the IoU-aware cross-entropy, in whose place there is a varifocal loss",),
    ),
    "deformable_detr": Family(
        "focal", "input_proj", {"short_side": 800, "max_side": 1333, **IMAGENET}, takes_padding=True
    ),
}
SOFTMAX = ("detr", "table-transformer", "yolos")
# Layers with one row per class, by the last part of their name that is no number.
CLASS_LAYERS = ("class_embed", "enc_score_head", "enc_out_class_embed", "denoising_class_embed")


def require_transformers() -> Any:
    """Return the module transformers.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        message = "HuggingFaceDetector needs transformers, which is not installed: pip install 'cahqp[hf]'."
        raise ConfigError(message) from error
    return transformers


def family_of(config: Any) -> Family:
    """Return what is known of a model's kind.

    Args:
        config: Of transformers.

    Raises:
        ConfigError: It is none that can be trained here.
    """
    kind, known = config.model_type, ", ".join(FAMILIES)
    if kind in SOFTMAX:
        message = (
            f"{kind} scores its classes against one for nothing with a softmax; criterion, thresholds and calibration "
            f"here read a sigmoid per class. Take one of {known}."
        )
        raise ConfigError(message)
    if kind not in FAMILIES:
        message = f"{kind} is no detector of transformers that can be a student here. Take one of {known}."
        raise ConfigError(message)
    if getattr(config, "two_stage", False):
        message = (
            "deformable_detr with two_stage: true ranks its proposals by their first class alone, and transformers has "
            "no loss for them. Take the model without two_stage, or rt_detr."
        )
        raise ConfigError(message)
    return FAMILIES[kind]


def read_config(model: str | None, config: Mapping[str, Any] | None) -> Any:
    """Return the configuration of a model by its name or folder, or from its settings.

    Raises:
        ConfigError: Neither or both are given, or they cannot be read.
    """
    transformers = require_transformers()
    if (model is None) == (config is None):
        message = (
            "HuggingFaceDetector needs either model, a folder or a name on the hub, or config, not both or neither."
        )
        raise ConfigError(message)
    if config is not None:
        kind = config.get("model_type")
        if kind not in transformers.CONFIG_MAPPING:
            message = f"config.model_type must be one of {', '.join(FAMILIES)}, got {kind!r}."
            raise ConfigError(message)
        try:
            return transformers.CONFIG_MAPPING[kind].from_dict(dict(config))
        except (TypeError, ValueError) as error:
            message = f"config is none that {kind} can have: {error}"
            raise ConfigError(message) from error
    try:
        return transformers.AutoConfig.from_pretrained(model, local_files_only=is_local(model))
    except (OSError, ValueError) as error:
        raise ConfigError(_unreadable(model, error)) from error


def is_local(model: str | None) -> bool:
    """Whether a model is a folder here, so that nothing is to be asked of the hub."""
    return model is not None and (Path(model).exists() or model.startswith((".", "/", "~")))


def _unreadable(model: str | None, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    return (
        f"{model} cannot be read ({reason}). Give model a folder written by save_pretrained, with its config.json, or "
        "a name on the hub such as PekingU/rtdetr_r18vd."
    )


def new_model(config: Any) -> nn.Module:
    """Return a model with random weights in float32, without asking for any file."""
    model: nn.Module = require_transformers().AutoModelForObjectDetection.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("mask_token"):  # of RF-DETR's backbone, for a pretraining; nothing here would train it
            parameter.requires_grad_(False)
    return model


def with_classes(config: Any, classes: Sequence[str]) -> Any:
    """Return the configuration with these classes in the place of its own."""
    settings = {**config.to_dict(), "id2label": dict(enumerate(classes))}
    settings["label2id"] = {name: index for index, name in enumerate(classes)}
    settings["auxiliary_loss"] = True  # RF-DETR tells the answers of its earlier layers only then
    return type(config).from_dict(settings)


def read_weights(model: str, config: Any, own: nn.Module, classes: Sequence[str]) -> tuple[str, ...]:
    """Load published weights into a model for other classes; those that both have keep their rows.

    Args:
        model: Folder or name on the hub.
        config: The published one.
        own: Built for `classes`; classes unknown to the published model keep the rows that they have there.
        classes: Names in order.

    Returns:
        The classes that the published model does not know.

    Raises:
        ConfigError: The weights cannot be read.
        WeightsError: They do not fit their own configuration.
    """
    transformers = require_transformers()
    try:
        published, told = transformers.AutoModelForObjectDetection.from_pretrained(
            model, local_files_only=is_local(model), dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(_unreadable(model, error)) from error
    problems = [f"{what} {name}" for what in ("missing", "unexpected") for name in sorted(told[f"{what}_keys"])]
    if problems:
        message = f"{model} does not fit its own config.json: {'; '.join(problems[:10])} ({len(problems)} in all)."
        raise WeightsError(message)
    names = {VOC_NAMES.get(name, name): int(row) for row, name in config.id2label.items()}
    rows = [names.get(name) for name in classes]
    state = own.state_dict()
    own.load_state_dict({k: _rows(k, v, state[k], rows) for k, v in published.state_dict().items()})
    return tuple(name for name, row in zip(classes, rows, strict=True) if row is None)


def _rows(name: str, theirs: Tensor, fresh: Tensor, rows: Sequence[int | None]) -> Tensor:
    """Return a weight with the rows of the wanted classes, where it has rows of classes at all."""
    layer = [part for part in name.split(".")[:-1] if not part.isdigit()][-1]
    if layer not in CLASS_LAYERS:
        return theirs
    chosen = fresh.clone()
    for place, row in enumerate(rows):
        if row is not None:
            chosen[place] = theirs[row]
    return chosen  # the last row of denoising_class_embed is for empty slots, zero in both


def read_preprocessing(model: str | None, family: Family) -> Preprocessing:
    """Return the size rule and normalisation of a model's image processor, or the published ones of its kind.

    Raises:
        ConfigError: Its rule is none that images can be given by here.
    """
    if model is None or (is_local(model) and not (Path(model) / PROCESSOR).is_file()):
        return Preprocessing(**family.preprocessing)
    try:
        found = require_transformers().AutoImageProcessor.from_pretrained(model, local_files_only=is_local(model))
    except (OSError, ValueError, TypeError) as error:
        message = f"The {PROCESSOR} of {model} cannot be read ({str(error).splitlines()[0]}). Mend or remove it."
        raise ConfigError(message) from error
    if not found.do_rescale or not math.isclose(found.rescale_factor, 1 / 255):
        message = f"{model} wants pixels scaled by {found.rescale_factor}, not by 1/255, which images here always are."
        raise ConfigError(message)
    normal: dict[str, Any] = {}
    if found.do_normalize:
        normal = {"mean": tuple(found.image_mean), "std": tuple(found.image_std)}
    size = {name: value for name, value in dict(found.size).items() if value is not None}
    if size.keys() == {"height", "width"}:
        return Preprocessing(size=(size["height"], size["width"]), **normal)
    if "shortest_edge" in size and family.takes_padding:
        return Preprocessing(short_side=size["shortest_edge"], max_side=size.get("longest_edge"), **normal)
    message = (
        f"{model} resizes images to {size}, which is no rule for it here. Change its {PROCESSOR} to height and width."
    )
    raise ConfigError(message)
