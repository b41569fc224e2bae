"""Markdown from the Jinja2 templates in `templates/`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return a template, a file in `templates/`, filled with values."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    templates = Environment(
        loader=PackageLoader("cahqp.benchmarks"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {
        "percent": _percent,
        "spread": _spread,
        "interval": _interval,
        "verdict": _verdict,
        "range": _range,
        "ratio": _ratio,
        "mib": _mib,
    }
    return templates


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _spread(value: Mapping[str, Any] | None) -> str:
    """Return mean and standard deviation in percent."""
    if value is None or value["mean"] is None:
        return "-"
    return _percent(value["mean"]) + (f" ± {_percent(value['sd'])}" if value["sd"] is not None else "")


def _interval(value: Mapping[str, Any] | float | None, sign: str = "+") -> str:
    """Return a value in percent with its interval; results of older versions may have none."""
    if not isinstance(value, Mapping):
        return _percent(value)
    return f"{100 * value['value']:{sign}.1f} [{100 * value['low']:{sign}.1f}, {100 * value['high']:{sign}.1f}]"


def _verdict(value: Mapping[str, Any] | None) -> str:
    """Return an interval with a mark: better, worse, equivalent within the margin, or none if it is open."""
    mark = ""
    if value is not None and value["excludes_zero"]:
        mark = " ▲" if value["value"] > 0 else " ▼"
    elif value is not None and value.get("equivalent"):
        mark = " ≈"
    return _interval(value) + mark


def _range(value: Mapping[str, float] | None) -> str:
    """Return a median in percent with the lowest and the highest value."""
    if value is None:
        return "-"
    return f"{_percent(value['median'])} ({_percent(value['lowest'])} to {_percent(value['highest'])})"


def _ratio(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else ", ".join(f"{value[key]:.2f}" for key in ("min", "median", "max"))


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.0f}"
