"""Typed and bounded metadata of model files.

A model file may come from anyone, and its hash can be recomputed. So each value that reaches a constructor is on an
allow-list with a type and a bound: no setting names a file, a URL, a hub or code.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, StrictInt, ValidationError, create_model

from cahqp.detectors.base import Detector, weights_error
from cahqp.json_policy import parse_json
from cahqp.structures import Preprocessing

MAX_BYTES = 1 << 20
"""Largest metadata of a model file in bytes. A detector of 1,000 classes needs about 50 kB."""

_MAX_PROBLEMS = 5
_ARCHITECTURE = re.compile(r"[A-Za-z0-9_]{1,80}(\.[A-Za-z0-9_]{1,80})?")
_BACKBONE_KWARGS = {"features_only", "in_chans", "in_channels", "out_indices", "output_stride", "always_partition"}
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_BOUNDS: Mapping[str, int] = {
    "queries": 10_000,
    "max_detections": 10_000,
    "size": 8192,
    "short_side": 8192,
    "dim": 8192,
}
_BOUNDS_OF_LAYERS = 64
_BOUND = 65_536

Name = Annotated[str, Field(min_length=1, max_length=200)]
Plain = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]
Architecture = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,80}(\.[a-z0-9_]{1,80})?$")]
Integer = Annotated[StrictInt, Field(ge=0, le=_BOUND)]
Width = Annotated[StrictInt, Field(ge=0, le=8192)]
Number = Annotated[float, Field(ge=-1e6, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1)]


class BackboneOptions(BaseModel):
    """Architecture arguments of a timm backbone that a model file may set.

    Arguments that read files, contact a hub or name code are missing on purpose.
    """

    model_config = _STRICT

    channels: list[Width] | None = None
    layers: list[Width] | None = None
    depths: list[Width] | None = None
    dims: list[Width] | None = None
    embed_dim: Width | None = None
    depth: Width | None = None
    num_heads: Width | list[Width] | None = None
    window_size: Width | None = None
    img_size: Width | list[Width] | None = None
    patch_size: Width | None = None
    mlp_ratio: Number | None = None
    stem_width: Width | None = None
    stem_type: Plain | None = None
    base_width: Width | None = None
    cardinality: Width | None = None
    output_stride: Width | None = None
    avg_down: StrictBool | None = None
    drop_rate: Share | None = None
    drop_path_rate: Share | None = None


class _PreprocessingEntry(BaseModel):
    model_config = _STRICT

    size: tuple[Integer, Integer] | None
    short_side: Annotated[StrictInt, Field(ge=1, le=8192)] | None
    max_side: Annotated[StrictInt, Field(ge=1, le=65_536)] | None
    mean: tuple[Number, Number, Number]
    std: tuple[Annotated[float, Field(gt=0, le=1e6)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class Metadata(BaseModel):
    """Metadata of a model file, apart from the settings of its architecture and prompt."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    format: StrictInt
    architecture: Name
    settings: dict[str, JsonValue]
    classes: Annotated[list[Name], Field(min_length=1, max_length=10_000)]
    preprocessing: _PreprocessingEntry
    prompt: dict[str, JsonValue] | None
    thresholds: dict[Name, Share]
    provenance: dict[str, JsonValue]


def parse_metadata(path: Path, text: str) -> dict[str, Any]:
    """Return the metadata of a model file.

    Args:
        path: The model file, for messages.
        text: The metadata as JSON.

    Raises:
        WeightsError: It is too large, too deeply nested, not JSON, or a value has a wrong type or bound.
    """
    if len(text) > MAX_BYTES:
        raise weights_error(path, f"has {len(text)} bytes of metadata; at most {MAX_BYTES} are allowed")
    try:
        metadata = parse_json(text.encode())
        Metadata.model_validate(metadata)
    except (ValidationError, ValueError, RecursionError) as error:
        raise weights_error(path, f"has invalid metadata ({describe(error)}). Restore a copy") from error
    return dict(metadata)


def build_preprocessing(entry: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing of validated metadata; JSON has no tuples."""
    rule: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
    return Preprocessing(**rule)


def check_settings(path: Path, kind: type[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return constructor arguments from a model file, checked against the constructor's signature.

    Args:
        path: The model file, for messages.
        kind: Class that takes the settings: a detector or the prompt.
        settings: The settings as JSON values.

    Raises:
        WeightsError: A setting is unknown, has a wrong type or bound, or names a file or a download.
    """
    try:
        _schema(kind).model_validate(dict(settings))  # type: ignore[arg-type]  # classes are hashable
    except ValidationError as error:
        problem = f"has settings that this version does not support ({kind.__name__}: {describe(error)})"
        raise weights_error(path, f"{problem}. Use the cahqp that wrote it, or restore a copy") from error
    safe = dict(settings)
    if isinstance(safe.get("config"), dict) and (unsafe := _config_problem(safe["config"])):
        raise weights_error(path, f"has a config that is not allowed: {unsafe}. Restore a copy")
    if issubclass(kind, Detector):
        safe |= {name: value for name, value in _FORCED.items() if name in inspect.signature(kind).parameters}
    return safe


_FORCED: Mapping[str, Any] = {"pretrained": False, "backbone_weights": None, "model": None}
"""Arguments that would read a file or download weights; a model file contains its own weights."""


def _config_problem(config: Mapping[str, Any]) -> str | None:
    """Return the first entry of a transformers configuration that could load code, files or weights."""
    for name, value in config.items():
        if name in ("auto_map", "trust_remote_code", "quantization_config") and value:
            return f"{name} is set"
        if "attn_implementation" in name and isinstance(value, str) and not _ARCHITECTURE.fullmatch(value):
            return f"{name} {value[:80]!r} is not the name of an implementation"
        limit = _BOUNDS_OF_LAYERS if name.endswith("layers") else _BOUND
        if isinstance(value, int) and abs(value) > limit:
            return f"{name} is {value}, at most {limit} is allowed"
        if name.startswith("use_pretrained") and value:
            return f"{name} is true; a model file contains its own weights"
        if name == "backbone" and isinstance(value, str) and not _ARCHITECTURE.fullmatch(value):
            return f"backbone {value[:80]!r} is not the name of an architecture"
        if name == "backbone_kwargs" and value and set(value) - _BACKBONE_KWARGS:
            return f"backbone_kwargs.{min(set(value) - _BACKBONE_KWARGS)} is unknown"
        if isinstance(value, dict) and (problem := _config_problem(value)):
            return f"{name}.{problem}"
    return None


@cache
def _schema(kind: type[Any]) -> type[BaseModel]:
    """Return a strict pydantic model of a constructor."""
    hints = typing.get_type_hints(vars(kind)["__init__"])
    fields: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(vars(kind)["__init__"]).parameters.items())[1:]:
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[name] = (_bounded(name, hints[name]), default)
    return create_model(f"{kind.__name__}Settings", __config__=_STRICT, **fields)


def _bounded(name: str, hint: Any) -> Any:
    """Return the type of a setting in a model file: the constructor's, with bounds and without paths."""
    special: dict[str, Any] = {
        "backbone": Architecture,
        "backbone_options": BackboneOptions | None,
        "backbone_weights": JsonValue,  # replaced by None
        "model": None,
        "pretrained": StrictBool,
        "classes": Annotated[list[Name], Field(max_length=10_000)],
        "config": dict[str, JsonValue] | None,
        "class_from": dict[Name, Annotated[list[Name], Field(max_length=1024)]] | None,
    }
    if name in special:
        return special[name]
    bound = _BOUNDS_OF_LAYERS if name.endswith("layers") else _BOUNDS.get(name, _BOUND)
    return _replace_numbers(hint, bound)


def _replace_numbers(hint: Any, bound: int) -> Any:
    """Return a type with bounded integers and finite numbers in place of `int` and `float`."""
    if hint is int:
        return Annotated[StrictInt, Field(ge=-1, le=bound)]
    if hint is float:
        return Number
    if hint is bool:
        return StrictBool
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal or not arguments:
        return hint
    inner = tuple(_replace_numbers(argument, bound) for argument in arguments)
    if origin in (list, tuple):
        return Annotated[origin[inner], Field(max_length=1024)] if origin is list else origin[inner]
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return Annotated[list[inner[0]], Field(max_length=1024)]  # type: ignore[valid-type]
    return typing.Union[inner]  # noqa: UP007  from a tuple of types


def describe(error: Exception) -> str:
    """Return the problems of a validation in one line."""
    if not isinstance(error, ValidationError):
        return str(error)[:200]
    problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)]
    more = f" and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
    return "; ".join(problems[:_MAX_PROBLEMS])[:600] + more
