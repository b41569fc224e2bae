"""Layouts of published checkpoints: recognition, renaming and class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cahqp.detectors.base import Detector
from cahqp.detectors.dino import DINO
from cahqp.detectors.published import key_maps
from cahqp.detectors.published.checkpoint_file import CheckpointFile
from cahqp.detectors.published.class_mapping import COCO_91, COCO_NAMES, VOC_NAMES
from cahqp.detectors.published.options import ArchitectureHints
from cahqp.detectors.published.shapes import Architecture, Tensors, read_detrex, read_official, read_rtdetr
from cahqp.detectors.rtdetr import RTDETR
from cahqp.errors import WeightsError


@dataclass(frozen=True)
class CheckpointLayout:
    """One family of checkpoints.

    Attributes:
        name: Name in messages and provenance.
        signature: Weight names that occur together in this family only.
        rules: Published names and names of cahqp.
        ignored: Patterns of published names that hold nothing trained.
        detector: Class of the detector.
        read: Returns the architecture of renamed tensors.
    """

    name: str
    signature: tuple[str, ...]
    rules: key_maps.Rules
    ignored: tuple[str, ...]
    detector: type[Detector]
    read: Callable[[Tensors, CheckpointFile, ArchitectureHints], Architecture]


@dataclass(frozen=True)
class PublishedModel:
    """A recognised checkpoint.

    Attributes:
        layout: Its layout.
        architecture: Weights, settings and notes.
        names: The class of each row of the class heads; `None` for an unused row.
    """

    layout: CheckpointLayout
    architecture: Architecture
    names: tuple[str | None, ...]


def recognise(file: CheckpointFile, names: Sequence[str] | None, hints: ArchitectureHints) -> PublishedModel:
    """Return the model of a checkpoint.

    Args:
        file: The checkpoint.
        names: Classes of its outputs, if they are not COCO's.
        hints: Settings that shapes do not determine.

    Raises:
        WeightsError: The layout is unknown, names are unknown or missing, or the weights fit no model.
    """
    layout = next((layout for layout in LAYOUTS if all(key in file.tensors for key in layout.signature)), None)
    if layout is None:
        raise WeightsError(_unknown_layout(file))
    renamed = key_maps.rename(file.tensors, layout.rules, layout.ignored)
    problems = [f"unknown {name}" for name in renamed.unknown]
    problems += [f"{pair} should be one weight, but differ" for pair in renamed.differing]
    architecture = Architecture({}, {}, [])
    if not problems:
        try:
            tensors = key_maps.join_projections(renamed.tensors)
            architecture = layout.read(tensors, file, _add_config(file.config, hints))
            problems = _wrong_rows(architecture.tensors)
        except KeyError as error:
            problems = [f"missing {error.args[0]}"]
        except WeightsError as error:
            problems = [str(error)]
    if problems:
        raise WeightsError(problem_list(file, layout.name, problems))
    return PublishedModel(
        layout, architecture, _class_names(file, len(architecture.tensors["class_heads.0.bias"]), names)
    )


def _wrong_rows(tensors: Tensors) -> list[str]:
    """Return a line for each class head with another number of classes than the first."""
    outputs = len(tensors["class_heads.0.bias"])
    return [
        f"{name} has {len(tensor)} rows where the first class head has {outputs}"
        for name, tensor in tensors.items()
        if (name.startswith(("class_heads.", "proposal_class.")) and len(tensor) != outputs)
        or (name == "label_content.weight" and len(tensor) < outputs)
    ]


def problem_list(file: CheckpointFile, layout: str, problems: Sequence[str]) -> str:
    """Return the message for weights that do not fit."""
    more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
    return f"{file.path} looks like {layout}, but does not fit it: {'; '.join(problems[:20])}{more}."


def _unknown_layout(file: CheckpointFile) -> str:
    guess = ""
    if any(name.startswith("detector.") for name in file.tensors):
        guess = " It is a training checkpoint of cahqp: use the model.safetensors of that run without conversion."
    elif "fc.weight" in file.tensors and "layer1.0.conv1.weight" in file.tensors:
        guess = " It is a ResNet classifier: give it to a detector as its backbone_weights."
    supported = "; ".join(layout.name for layout in LAYOUTS)
    first = ", ".join(list(file.tensors)[:4])
    return f"{file.path} has an unsupported architecture; its first weights are {first}.{guess} Supported: {supported}."


def _add_config(config: dict[str, Any], hints: ArchitectureHints) -> ArchitectureHints:
    """Return hints completed from a Hugging Face configuration; given ones take precedence."""
    if config.get("learn_initial_query") or config.get("normalize_before"):
        message = "This RT-DETR learns its first queries or normalises before its blocks, unlike the published ones."
        raise WeightsError(message)
    discrete = config.get("decoder_method") == "discrete"
    return replace(
        hints,
        heads=config.get("decoder_attention_heads", hints.heads),
        queries=hints.queries or config.get("num_queries"),
        sampling="discrete" if discrete else hints.sampling,
    )


def _class_names(file: CheckpointFile, outputs: int, names: Sequence[str] | None) -> tuple[str | None, ...]:
    """Return the class of each output."""
    if names is not None:
        if len(names) != outputs or len(set(names)) < len(names):
            message = f"{file.path} has {outputs} outputs, and --names has {len(names)}. Give each output one name."
            raise WeightsError(message)
        return tuple(names)
    labels = file.config.get("id2label") or {}
    own = tuple(str(labels.get(str(row), "")) for row in range(outputs))
    if len(set(own)) == outputs and all(own) and not own[0].startswith("LABEL_"):
        return tuple(VOC_NAMES.get(name, name) for name in own) if outputs == len(COCO_NAMES) else own
    coco: dict[int, tuple[str | None, ...]] = {len(COCO_NAMES): COCO_NAMES, len(COCO_91): COCO_91}
    if outputs not in coco:
        message = (
            f"{file.path} has {outputs} outputs, not COCO's 80 or 91, and contains no class names. "
            "Give their names in order with --names a,b,c."
        )
        raise WeightsError(message)
    return coco[outputs]


LAYOUTS = (
    CheckpointLayout(
        "DINO of IDEA-Research/DINO",
        ("transformer.enc_out_class_embed.weight", "transformer.level_embed"),
        key_maps.DINO_OFFICIAL,
        (r".*\.num_batches_tracked",),
        DINO,
        read_official,
    ),
    CheckpointLayout(
        "DINO of detrex",
        ("neck.convs.0.conv.weight", "transformer.level_embeds"),
        key_maps.DINO_DETREX,
        (r".*\.num_batches_tracked",),
        DINO,
        read_detrex,
    ),
    CheckpointLayout(
        "RT-DETR of lyuwenyu/RT-DETR",
        ("decoder.dec_score_head.0.weight", "decoder.enc_score_head.weight"),
        key_maps.RTDETR_PUBLISHED,
        (r"decoder\.(anchors|valid_mask)", r".*\.num_points_scale", r"encoder\.pos_embed\d+"),
        RTDETR,
        read_rtdetr,
    ),
    CheckpointLayout(
        "RT-DETR of transformers",
        ("model.enc_score_head.weight", "model.decoder.class_embed.0.weight"),
        key_maps.RTDETR_TRANSFORMERS,
        (r"model\.(anchors|valid_mask)", r".*\.n_points_scale"),
        RTDETR,
        read_rtdetr,
    ),
)
