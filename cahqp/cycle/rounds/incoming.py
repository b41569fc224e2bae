"""Rounds that a watched folder has made so far."""

from __future__ import annotations

from pathlib import Path

from cahqp.cycle.fetch.command import TAKEN
from cahqp.files import write_json
from cahqp.records import Name, Record, read_record

INCOMING = "rounds.json"


class _RoundRecord(Record):
    name: Name
    until: float


class _RoundsRecord(Record):
    """Content of `rounds.json`."""

    rounds: list[_RoundRecord]


def incoming(root: Path) -> dict[str, float]:
    """Return the names of the rounds, each with the time up to which it takes files.

    Args:
        root: Directory of the cycle.
    """
    path = root / INCOMING
    if not path.is_file():
        return {}
    return {entry.name: entry.until for entry in read_record(path, _RoundsRecord, "Restore a copy.").rounds}


def add_round(root: Path, until: float) -> None:
    """Add a round.

    Args:
        root: Directory of the cycle.
        until: Seconds since 1970. Files that changed later are left to the next round.
    """
    rounds = incoming(root)
    _write(root, rounds | {f"arrival-{len(rounds) + 1:03d}": until})


def drop_unstarted(root: Path, fetches: list[Path]) -> None:
    """Remove the last round if its fetch has not listed files: the files that started it may have changed since.

    Args:
        root: Directory of the cycle.
        fetches: Directories of the fetches of all rounds.
    """
    rounds = incoming(root)
    if rounds and not (fetches[-1].exists() or (fetches[-1].with_name("fetch.partial") / TAKEN).is_file()):
        rounds.popitem()
        _write(root, rounds)


def _write(root: Path, rounds: dict[str, float]) -> None:
    write_json(root / INCOMING, {"rounds": [{"name": name, "until": until} for name, until in rounds.items()]})
