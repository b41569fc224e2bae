"""Writer of benchmark results into a section of a documentation page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cahqp.benchmarks.adapt.plan import CA_HQP, MEAN_TEACHER, SOURCE_ONLY, ZERO_SHOT
from cahqp.benchmarks.markdown import render
from cahqp.errors import ConfigError
from cahqp.evaluation.seeds import MIN_SEEDS
from cahqp.files import atomic_write

_OLDER: dict[str, Any] = {
    "source_weights": None,
    "min_objects": 1,
    "left_out": {},
    "margin": None,
    "commit": None,
    "dirty": None,
}
"""Keys that results of older versions lack."""


def markdown(results: Mapping[str, Any]) -> str:
    """Return the section of one benchmark from the content of its `results.json`."""
    against, over_zero_shot = (
        {each["arm"]: each for each in results["differences"] if each["baseline"] == baseline}
        for baseline in (MEAN_TEACHER, ZERO_SHOT)
    )
    images = {name: arm["images"] for name, arm in results["arms"].items()}
    context = {
        "against": against,
        "over_zero_shot": over_zero_shot,
        "terms": against.get(CA_HQP),
        "drops": {name: _source_drop(results["arms"], name) for name in results["order"]},
        "readers": ["the evaluation", "the oracles", *results["ground_truth"]],
        "min_seeds": MIN_SEEDS,
        "most_images": max(images.values()),
    }
    return render("adapt.md.j2", _OLDER | {**results, **context})


def write_section(page: Path, name: str, section: str) -> None:
    """Replace the section between its markers in a page, or append it.

    Raises:
        ConfigError: The page is missing, or has one marker without the other.
    """
    text = read_page(page, name)
    begin, end = markers(name)
    marked = f"{begin}\n{section}{end}"
    if begin in text:
        before, _, rest = text.partition(begin)
        text = before + marked + rest.partition(end)[2]
    else:
        text = f"{text.rstrip()}\n\n{marked}\n"
    with atomic_write(page) as file:
        file.write(text)


def read_page(page: Path, name: str) -> str:
    """Return the text of a page and check its markers.

    Raises:
        ConfigError: The page is missing, or has one marker without the other.
    """
    if not page.is_file():
        message = f"--docs {page} does not exist. Give a page such as docs/results.md."
        raise ConfigError(message)
    text = page.read_text(encoding="utf-8")
    begin, end = markers(name)
    if (begin in text) != (end in text):
        message = f"{page} contains only one of {begin} and {end}. Restore the other one, or remove both."
        raise ConfigError(message)
    return text


def markers(name: str) -> tuple[str, str]:
    """Return the comments before and after a benchmark's section."""
    return f"<!-- benchmark:{name} -->", f"<!-- /benchmark:{name} -->"


def _source_drop(arms: Mapping[str, Any], name: str) -> str:
    before, after = (arms[arm]["source_ap50"]["mean"] for arm in (SOURCE_ONLY, name))
    return "-" if before is None or after is None or name == SOURCE_ONLY else f"{100 * (before - after):+.1f}"
