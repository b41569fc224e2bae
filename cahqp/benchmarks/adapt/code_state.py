"""State of the code that wrote a table: commit, and uncommitted changes."""

from __future__ import annotations

import subprocess
from pathlib import Path

_ROOT = Path(__file__).parents[3]
_DECISIVE = ("cahqp", "configs", "weights")  # changes elsewhere, such as in docs, decide no figure


def code_state() -> dict[str, str | bool | None]:
    """Return the `commit` of the clone, and whether code or configs differ from it (`dirty`).

    Both are `None` for an installed package, or without git.
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--", *_DECISIVE))}


def _git(*arguments: str) -> str | None:
    if not (_ROOT / ".git").exists():  # another repository may contain the installed package
        return None
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
