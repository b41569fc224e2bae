"""Pages of benchmark results: a table and a plot of each benchmark, and an overview in the page of conclusions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cahqp.benchmarks.adapt.plan import CA_HQP, SOURCE_ONLY, ZERO_SHOT
from cahqp.benchmarks.adapt.plot import plot
from cahqp.benchmarks.adapt.table import markdown
from cahqp.benchmarks.markdown import render
from cahqp.benchmarks.options import PageOptions
from cahqp.errors import ConfigError
from cahqp.files import atomic_write, read_json, write_json

FIGURES = "benchmark"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"


def page(options: PageOptions) -> None:
    """Write the tables, plots and overview again from the figures beside a page.

    Raises:
        ConfigError: The page is missing, or has no place for the overview.
    """
    write_page(options.docs)
    print(f"{options.docs}: overview of {len(list(_figures(options.docs)))} benchmarks")


def add_results(page: Path, figures: Mapping[str, Any]) -> None:
    """Store the figures of one benchmark beside a page, and write the page again."""
    folder = page.parent / FIGURES
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{figures['name']}.json", figures)
    write_page(page)


def write_page(page: Path) -> None:
    """Write `NAME.md` and `NAME.svg` beside each `NAME.json`, and the overview between the page's markers.

    Raises:
        ConfigError: The page is missing, or has no place for the overview.
    """
    text = read_page(page)
    figures = _figures(page)
    for path, of_plan in figures.items():
        _write(path.with_suffix(".md"), markdown(of_plan))
        _write(path.with_suffix(".svg"), plot(of_plan))
    rows = [_row(path.stem, of_plan) for path, of_plan in figures.items()]
    before, _, rest = text.partition(BEGIN)
    overview = render("overview.md.j2", {"rows": rows, "folder": FIGURES})
    _write(page, f"{before}{BEGIN}\n{overview}{END}{rest.partition(END)[2]}")


def read_page(page: Path) -> str:
    """Return the text of a page and check its markers.

    Raises:
        ConfigError: The page is missing, or lacks a marker.
    """
    if not page.is_file():
        message = f"--docs {page} does not exist. Give a page such as docs/results.md."
        raise ConfigError(message)
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        message = f"{page} must contain {BEGIN} and {END} once, in this order. The overview is written between them."
        raise ConfigError(message)
    return text


def _figures(page: Path) -> dict[Path, dict[str, Any]]:
    return {path: read_json(path) for path in sorted((page.parent / FIGURES).glob("*.json"))}


def _row(key: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overview's entry of one benchmark: its bounds, and the adapted arm that the project ships.

    A `note`, added to the figures by hand, says why a table is no longer in the overview.
    """
    arms, oracle = figures["arms"], figures["oracle"]
    others = [arm for arm in figures["order"] if arm not in (SOURCE_ONLY, ZERO_SHOT, oracle)]
    adapted = CA_HQP if CA_HQP in arms else next(iter(others), None)
    return {
        "key": key,
        "about": figures["about"],
        "note": figures.get("note"),
        "seeds": len(figures["seeds"]),
        "development": figures["shift"] == "development",
        "commit": figures.get("commit"),
        "bounds": {name: arms[name]["target_ap50"] if name in arms else None for name in (SOURCE_ONLY, ZERO_SHOT)},
        "oracle": None if oracle is None else arms[oracle]["target_ap50"],
        "adapted": adapted,
        "ap50": None if adapted is None else arms[adapted]["target_ap50"],
        "gain": None if adapted is None else arms[adapted]["gain"],
        "closed": None if adapted is None else arms[adapted]["closed"],
    }


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text)
