"""Supported object detectors of transformers: their weights, classes and preprocessing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cahqp.detectors.huggingface import deimv2
from cahqp.detectors.published.class_mapping import VOC_NAMES
from cahqp.errors import ConfigError, WeightsError
from cahqp.structures import Preprocessing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PROCESSOR = "preprocessor_config.json"
SQUARE: dict[str, Any] = {"size": (640, 640)}
SHORT_SIDE: dict[str, Any] = {"short_side": 800, "max_side": 1333, **IMAGENET}
_OF_EDGES = ("FGL, on the distributions of edges", "DDF, which distils the last layer into the others")


@dataclass(frozen=True)
class Family:
    """Properties of one kind of detector.

    Attributes:
        class_loss: Class loss of the criterion.
        projections: Module path of the projections whose maps enter the encoder.
        preprocessing: Default for models without an image processor.
        takes_padding: Whether images of several sizes may share a batch.
        left_out: Parts of the published training that the criterion lacks.
        encoder_layers: Whether the layers of the encoder output the tokens of all levels.
        backbone: Module path of the layers that usually train with a smaller learning rate.
        stride: Divisor of the height and width of images.
        correct: Function that corrects a new model of transformers in place.
        unused: Prefix of published weights that the corrected model lacks.
    """

    class_loss: str
    projections: str
    preprocessing: Mapping[str, Any]
    takes_padding: bool = False
    left_out: tuple[str, ...] = ()
    encoder_layers: bool = False
    backbone: str = "backbone"
    stride: int = 1
    correct: Callable[[Any], None] | None = None
    unused: str | None = None


FAMILIES: dict[str, Family] = {
    "rt_detr": Family("varifocal", "encoder_input_proj", SQUARE, stride=32),
    "rt_detr_v2": Family("varifocal", "encoder_input_proj", SQUARE, stride=32),
    "d_fine": Family("varifocal", "encoder_input_proj", SQUARE, left_out=_OF_EDGES, stride=32),
    "deimv2": Family(
        "varifocal",
        "encoder.input_proj",
        SQUARE,
        left_out=(*_OF_EDGES, "MAL, replaced by a varifocal loss"),
        backbone="conv_encoder.model",
        stride=32,
        correct=deimv2.correct,
        unused=deimv2.UNUSED,
    ),
    "rf_detr": Family(
        "varifocal",
        "backbone.projector",
        {"size": (560, 560), **IMAGENET},
        takes_padding=True,
        left_out=("the IoU-aware cross-entropy, replaced by a varifocal loss",),
    ),
    "deformable_detr": Family("focal", "input_proj", SHORT_SIDE, takes_padding=True, encoder_layers=True),
    "conditional_detr": Family("focal", "input_projection", SHORT_SIDE, takes_padding=True, encoder_layers=True),
    "dab-detr": Family("focal", "input_projection", SHORT_SIDE, takes_padding=True, encoder_layers=True),
}
SOFTMAX = ("detr", "table-transformer", "yolos")
# Deformable, Conditional and DAB-DETR train all stages of a ResNet but the first. If it is not from timm, transformers
# 5.23 searches for "stage.1" in names with "stages.1" and freezes all of it.
_TRAINED_STAGES = re.compile(r"\.stages\.[123]\.")
# Layers with one row per class, by the last part of their name that is not a number.
CLASS_LAYERS = (
    "class_embed",
    "class_labels_classifier",
    "enc_score_head",
    "enc_out_class_embed",
    "denoising_class_embed",
)


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
    """Return the family of a transformers configuration.

    Raises:
        ConfigError: The model cannot be trained here.
    """
    kind, known = config.model_type, ", ".join(FAMILIES)
    message = None
    if kind in SOFTMAX:
        message = (
            f"{kind} has a softmax over classes and background. Criterion, thresholds and calibration need a sigmoid "
            f"per class. Use one of {known}."
        )
    elif kind not in FAMILIES:
        message = f"{kind} is not a supported detector of transformers. Use one of {known}."
    elif getattr(config, "two_stage", False):
        message = (
            "deformable_detr with two_stage: true ranks its proposals by their first class alone, and transformers has "
            "no loss for them. Use the model without two_stage, or rt_detr."
        )
    if message is not None:
        raise ConfigError(message)
    family = FAMILIES[kind]
    return deimv2.place_modules(family, config) if kind == "deimv2" else family


def read_config(model: str | None, config: Mapping[str, Any] | None) -> Any:
    """Return the transformers configuration of a model's name or folder, or of its settings.

    Raises:
        ConfigError: Neither or both are given, or they cannot be read.
    """
    transformers = require_transformers()
    if (model is None) == (config is None):
        message = (
            "HuggingFaceDetector needs either model, a folder or a name on the hub, or config, not both or neither."
        )
        raise ConfigError(message)
    if config is None:
        try:
            return transformers.AutoConfig.from_pretrained(model, local_files_only=is_local(model))
        except (OSError, ValueError) as error:
            raise ConfigError(_unreadable(model, error)) from error
    kind = config.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        message = f"config.model_type must be one of {', '.join(FAMILIES)}, got {kind!r}."
        raise ConfigError(message)
    try:
        return transformers.CONFIG_MAPPING[kind].from_dict(dict(config))
    except (TypeError, ValueError) as error:
        message = f"config is not valid for {kind}: {error}"
        raise ConfigError(message) from error


def is_local(model: str | None) -> bool:
    """Return whether a model is a local folder, so that the hub is not contacted."""
    return model is not None and (Path(model).exists() or model.startswith((".", "/", "~")))


def _unreadable(model: str | None, error: Exception) -> str:
    return (
        f"{model} cannot be read ({str(error).splitlines()[0]}). Give model a folder written by save_pretrained, with "
        "its config.json, or a name on the hub such as PekingU/rtdetr_r18vd."
    )


def new_model(config: Any, family: Family) -> nn.Module:
    """Return a model with random float32 weights, without reading any file."""
    model: nn.Module = require_transformers().AutoModelForObjectDetection.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("mask_token"):  # used only in the pretraining of RF-DETR's backbone
            parameter.requires_grad_(False)
        elif _TRAINED_STAGES.search(name):
            parameter.requires_grad_(True)
    if family.correct is not None:
        family.correct(model)
    return model


def set_classes(config: Any, classes: Sequence[str]) -> Any:
    """Return a copy of the configuration with these classes."""
    settings = {**config.to_dict(), "id2label": dict(enumerate(classes))}
    settings["label2id"] = {name: index for index, name in enumerate(classes)}
    settings.pop("auto_map", None)  # names code beside the model, which is never imported
    settings["auxiliary_loss"] = True  # without it RF-DETR does not return the predictions of its earlier layers
    return type(config).from_dict(settings)


def read_weights(model: str, config: Any, own: nn.Module, classes: Sequence[str], family: Family) -> tuple[str, ...]:
    """Load published weights into a model for other classes; common classes keep their rows.

    Args:
        model: Folder or name on the hub.
        config: The published configuration.
        own: Model for `classes`. Its rows stay for classes that the published model lacks.
        classes: Names in order.
        family: Family of the model.

    Returns:
        The classes that the published model lacks.

    Raises:
        ConfigError: The weights cannot be read.
        WeightsError: They do not fit their own configuration.
    """
    transformers = require_transformers()
    try:
        published, info = transformers.AutoModelForObjectDetection.from_pretrained(
            model, local_files_only=is_local(model), dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(_unreadable(model, error)) from error
    problems = [f"{kind} {name}" for kind in ("missing", "unexpected") for name in sorted(info[f"{kind}_keys"])]
    problems = [line for line in problems if family.unused is None or family.unused not in line]
    if problems:
        message = f"{model} does not fit its own config.json: {'; '.join(problems[:10])} ({len(problems)} in all)."
        raise WeightsError(message)
    names = {VOC_NAMES.get(name, name): int(row) for row, name in config.id2label.items()}
    rows = [names.get(name) for name in classes]
    state = own.state_dict()
    weights = {k: v for k, v in published.state_dict().items() if family.unused is None or family.unused not in k}
    own.load_state_dict({k: _select_rows(k, v, state[k], rows) for k, v in weights.items()})
    return tuple(name for name, row in zip(classes, rows, strict=True) if row is None)


def _select_rows(name: str, published: Tensor, own: Tensor, rows: Sequence[int | None]) -> Tensor:
    """Return a published weight; in a class layer, its rows of the requested classes, and `own` rows for new ones."""
    layer = [part for part in name.split(".")[:-1] if not part.isdigit()][-1]
    if layer not in CLASS_LAYERS:
        return published
    selected = own.clone()
    for index, row in enumerate(rows):
        if row is not None:
            selected[index] = published[row]
    return selected  # the last row of denoising_class_embed is for empty slots, zero in both


def read_preprocessing(model: str | None, family: Family) -> Preprocessing:
    """Return the size rule and normalisation of a model's image processor, or the default of its family.

    Raises:
        ConfigError: The processor cannot be read, or has another rule than cahqp supports.
    """
    if model is None or (is_local(model) and not (Path(model) / PROCESSOR).is_file()):
        return Preprocessing(**family.preprocessing)
    try:
        processor = require_transformers().AutoImageProcessor.from_pretrained(model, local_files_only=is_local(model))
    except (OSError, ValueError, TypeError) as error:
        message = f"The {PROCESSOR} of {model} cannot be read ({str(error).splitlines()[0]}). Fix or remove it."
        raise ConfigError(message) from error
    if not processor.do_rescale or not math.isclose(processor.rescale_factor, 1 / 255):
        message = f"{model} scales pixels by {processor.rescale_factor}; only 1/255 is supported. Use another model."
        raise ConfigError(message)
    normal: dict[str, Any] = {}
    if processor.do_normalize:
        normal = {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    size = {name: value for name, value in dict(processor.size).items() if value is not None}
    if size.keys() == {"height", "width"}:
        return Preprocessing(size=(size["height"], size["width"]), **normal)
    if "shortest_edge" in size and family.takes_padding:
        return Preprocessing(short_side=size["shortest_edge"], max_side=size.get("longest_edge"), **normal)
    message = f"{model} resizes images to {size}, which is not supported. Set height and width in its {PROCESSOR}."
    raise ConfigError(message)
