"""Tells the published layouts apart and reads the architecture off the tensors' shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cahqp.detectors.base import Detector
from cahqp.detectors.dino import DINO
from cahqp.detectors.published.checkpoint_file import CheckpointFile
from cahqp.detectors.published.class_mapping import COCO_91, COCO_NAMES, VOC_NAMES
from cahqp.detectors.published.key_maps import (
    DINO_DETREX,
    DINO_OFFICIAL,
    RTDETR_PUBLISHED,
    RTDETR_TRANSFORMERS,
    Rules,
    join_projections,
    rename,
)
from cahqp.detectors.published.shapes import Asked, Read, Tensors, read_detrex, read_official, read_rtdetr
from cahqp.detectors.rtdetr import RTDETR
from cahqp.errors import WeightsError


@dataclass(frozen=True)
class Published:
    """A published checkpoint, understood.

    Attributes:
        layout: Whose names it has.
        architecture: What it is here.
        settings: The architecture's arguments but for the classes.
        tensors: Under our names.
        names: The class of each row of the class heads; `None` for a row that means nothing.
        notes: What a user should know about it.
    """

    layout: str
    architecture: type[Detector]
    settings: dict[str, Any]
    tensors: Tensors
    names: tuple[str | None, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One family of checkpoints.

    Attributes:
        name: Told to the user.
        signature: Names that only this family has together.
        rules: Its names and ours.
        ignored: Patterns of its names that hold nothing trained.
        read: Returns tensors under our names and settings; the file's own tensors are at hand for buffers.
    """

    name: str
    signature: tuple[str, ...]
    rules: Rules
    ignored: tuple[str, ...]
    architecture: type[Detector]
    read: Callable[[Tensors, Tensors, Asked], Read]


def understand(file: CheckpointFile, names: tuple[str, ...] | None, asked: Asked) -> Published:
    """Return what a checkpoint is.

    Args:
        file: The checkpoint.
        names: The classes of its outputs, where they are not COCO's.
        asked: What shapes cannot tell.

    Raises:
        WeightsError: It is of another architecture, has names that are not known, lacks some, or fits no model.
    """
    layout = next((one for one in LAYOUTS if all(key in file.tensors for key in one.signature)), None)
    if layout is None:
        raise WeightsError(_not_ours(file))
    renamed = rename(file.tensors, layout.rules, layout.ignored)
    problems = [f"unknown {name}" for name in renamed.unknown]
    problems += [f"{pair} should be one weight, but differ" for pair in renamed.differing]
    if problems:
        raise WeightsError(problem_list(file, layout.name, problems))
    asked = _from_config(file.config, asked)
    try:
        tensors, settings, notes = layout.read(join_projections(renamed.tensors), file.tensors, asked)
    except KeyError as error:
        raise WeightsError(problem_list(file, layout.name, [f"missing {error.args[0]}"])) from error
    except WeightsError as error:
        raise WeightsError(problem_list(file, layout.name, [str(error)])) from error
    outputs = len(tensors["class_heads.0.bias"])
    _check_rows(file, layout.name, tensors, outputs)
    known = _names(file, outputs, names)
    return Published(layout.name, layout.architecture, settings, tensors, known, tuple(notes))


def _check_rows(file: CheckpointFile, layout: str, tensors: Tensors, outputs: int) -> None:
    """Refuse class heads that do not agree on the number of classes."""
    problems = [
        f"{name} has {len(tensor)} rows where the first class head has {outputs}"
        for name, tensor in tensors.items()
        if (name.startswith(("class_heads.", "proposal_class.")) and len(tensor) != outputs)
        or (name == "label_content.weight" and len(tensor) < outputs)
    ]
    if problems:
        raise WeightsError(problem_list(file, layout, problems))


def problem_list(file: CheckpointFile, layout: str, problems: list[str]) -> str:
    """Return the message for weights that do not fit."""
    more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
    return f"{file.path} looks like {layout}, but does not fit it: {'; '.join(problems[:20])}{more}."


def _not_ours(file: CheckpointFile) -> str:
    first = ", ".join(list(file.tensors)[:4])
    guess = ""
    if any(name.startswith("detector.") for name in file.tensors):
        guess = " It is a training checkpoint of cahqp: use the model.safetensors of that run, it needs no converting."
    elif "fc.weight" in file.tensors and "layer1.0.conv1.weight" in file.tensors:
        guess = " It is a ResNet classifier: give it to a detector as its backbone_weights."
    known = "; ".join(layout.name for layout in LAYOUTS)
    return f"{file.path} is of an architecture that is not known here; it begins with {first}.{guess} Known: {known}."


def _from_config(config: Mapping[str, Any], asked: Asked) -> Asked:
    """Fill in what a Hugging Face configuration says and the user did not."""
    if not config:
        return asked
    if config.get("learn_initial_query") or config.get("normalize_before"):
        message = "This RT-DETR learns its first queries or normalises before its blocks; the published ones do not."
        raise WeightsError(message)
    found: dict[str, Any] = {"heads": config.get("decoder_attention_heads", asked.heads)}
    found["queries"] = asked.queries or config.get("num_queries")
    if asked.sampling == "bilinear" and config.get("decoder_method") == "discrete":
        found["sampling"] = "discrete"
    found["offset_scale"] = config.get("decoder_offset_scale", asked.offset_scale)
    return replace(asked, **found)


def _names(file: CheckpointFile, outputs: int, given: tuple[str, ...] | None) -> tuple[str | None, ...]:
    """Return the class of each output."""
    if given is not None:
        if len(given) != outputs or len(set(given)) < len(given):
            message = (
                f"{file.path} has {outputs} outputs, and --names says {len(given)}, which must be as many, each once."
            )
            raise WeightsError(message)
        return given
    labels = file.config.get("id2label") or {}
    told = tuple(str(labels.get(str(row), "")) for row in range(outputs))
    if len(set(told)) == outputs and all(told) and not told[0].startswith("LABEL_"):
        return tuple(VOC_NAMES.get(name, name) for name in told) if outputs == len(COCO_NAMES) else told
    if outputs == len(COCO_NAMES):
        return COCO_NAMES
    if outputs == len(COCO_91):
        return COCO_91
    message = (
        f"{file.path} has {outputs} outputs, not COCO's 80 or 91, and does not name them. "
        "Say their names in order with --names a,b,c."
    )
    raise WeightsError(message)


LAYOUTS = (
    Layout(
        "DINO of IDEA-Research/DINO",
        ("transformer.enc_out_class_embed.weight", "transformer.level_embed"),
        DINO_OFFICIAL,
        (r".*\.num_batches_tracked",),
        DINO,
        read_official,
    ),
    Layout(
        "DINO of detrex",
        ("neck.convs.0.conv.weight", "transformer.level_embeds"),
        DINO_DETREX,
        (r".*\.num_batches_tracked",),
        DINO,
        read_detrex,
    ),
    Layout(
        "RT-DETR of lyuwenyu/RT-DETR",
        ("decoder.dec_score_head.0.weight", "decoder.enc_score_head.weight"),
        RTDETR_PUBLISHED,
        (r"decoder\.(anchors|valid_mask)", r".*\.num_points_scale", r"encoder\.pos_embed\d+"),
        RTDETR,
        read_rtdetr,
    ),
    Layout(
        "RT-DETR of transformers",
        ("model.enc_score_head.weight", "model.decoder.class_embed.0.weight"),
        RTDETR_TRANSFORMERS,
        (r"model\.(anchors|valid_mask)", r".*\.n_points_scale"),
        RTDETR,
        read_rtdetr,
    ),
)
