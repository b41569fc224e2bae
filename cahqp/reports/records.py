"""Types of the files that a report reads and others may have changed. Further keys are kept."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from cahqp.records import Difference, Name, Record, Share, Text


class CycleRecord(Record):
    """Content of `cycle.json`."""

    name: Name | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    command: Text | None = None
    rounds: Any = None


class _Accuracy(Record):
    ap50: Share | None
    map: Share | None = None
    images: Annotated[int, Field(ge=0)] | None = None
    per_class: dict[Name, Share | None] = Field(default_factory=dict)


class _Gain(Record):
    model: Name
    baseline: Name
    frames: Name
    low: Difference | None = None
    high: Difference | None = None


class EvaluationRecord(Record):
    """Content of the `metrics.json` of `cahqp evaluate`, as far as a report shows it."""

    models: dict[Name, dict[Name, _Accuracy]]
    differences: list[_Gain] = Field(default_factory=list)


class ManifestRecord(Record):
    """Content of the `manifest.json` of a stage."""

    settings: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, Any] = Field(default_factory=dict)


class RejectedRecord(Record):
    """Content of `rejected.json`."""

    annotations: list[dict[str, Any]] = Field(default_factory=list)


class _Unreadable(Record):
    file_name: Text


class QuarantineRecord(Record):
    """Content of `quarantine.json`."""

    images: list[_Unreadable] = Field(default_factory=list)


class DecisionsRecord(Record):
    """Content of the `decisions.json` of `cahqp relabel`."""

    thresholds: dict[Name, Share] = Field(default_factory=dict)
    temporal: dict[str, Any] = Field(default_factory=dict)


class SourceRecord(Record):
    """Content of `source.json`: the folder of the frames, or several."""

    root: Text | list[Text] = Field(default_factory=list)


class _Distance(Record):
    distance: Annotated[float, Field(ge=0)]


class _Reference(Record):
    features: _Distance


class _Window(Record):
    references: dict[Name, _Reference] = Field(default_factory=dict)


class _Camera(Record):
    verdict: Text
    fault: Text | None = None
    nearest: Text | None = None
    frames: Annotated[int, Field(ge=0)]
    windows: list[_Window] = Field(default_factory=list)


class DriftRecord(Record):
    """Content of `drift.json`, as far as a report shows it."""

    cameras: dict[Name, _Camera]
    silent: list[Name] = Field(default_factory=list)
