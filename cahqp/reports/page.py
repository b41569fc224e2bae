"""HTML pages from the Jinja2 templates in `templates/`: self-contained, offline, with every inserted value escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cahqp.files import atomic_write


def write_page(path: Path, template: str, **context: Any) -> None:
    """Render a template into a file.

    Args:
        path: The HTML file.
        template: File name in `templates/`.
        **context: Variables of the template. All of them are escaped.
    """
    page = environment().get_template(template).render(context)
    with atomic_write(path) as file:
        file.write(page + "\n")


@cache
def environment() -> Environment:
    """Return the environment of the templates: autoescaped, with an error for a missing variable."""
    templates = Environment(
        loader=PackageLoader("cahqp.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"show": _show, "columns": _columns}
    return templates


def _show(value: str | float | None) -> str:
    """Return the text of a table's cell.

    Args:
        value: Text, count, or share in 0..1 (shown in percent). `None` is an unknown share.
    """
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{100 * value:.1f}"


def _columns(records: Iterable[tuple[str, Mapping[str, Any]]], *keys: str) -> list[list[Any]]:
    """Return table rows with the name and some values of each record."""
    return [[name, *(record[key] for key in keys)] for name, record in records]
