"""The rounds that a watched folder has made so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cahqp.files import read_json

ARRIVED = "rounds.json"
TAKEN = "taken.json"  # what a fetch has decided to take


def add_arrival(root: Path, until: float, write: Any) -> str:
    """Add a round to those that a watched folder has made, and return its name.

    Args:
        root: The cycle's directory.
        until: Seconds since 1970; what changed after it is left to a later round.
        write: Writes a file.
    """
    known = incoming(root)
    name = f"arrival-{len(known) + 1:03d}"
    write(root / ARRIVED, _listed(known | {name: until}))
    return name


def drop_unbegun(root: Path, fetched: Path, write: Any) -> None:
    """Take the last round back whose fetch has taken nothing yet: what it was made for may be gone or mended since.

    Args:
        root: The cycle's directory.
        fetched: Where the last round's files come to lie.
        write: Writes a file.
    """
    known = incoming(root)
    partial = fetched.with_name(f"{fetched.name}.partial")
    if known and not (fetched.exists() or (partial / TAKEN).is_file()):
        known.popitem()
        write(root / ARRIVED, _listed(known))


def _listed(known: dict[str, float]) -> dict[str, Any]:
    return {"rounds": [{"name": name, "until": until} for name, until in known.items()]}


def incoming(root: Path) -> dict[str, float]:
    """Return the rounds that a watched folder has made so far, each with the time up to which it takes files."""
    path = root / ARRIVED
    return {one["name"]: one["until"] for one in read_json(path)["rounds"]} if path.is_file() else {}
