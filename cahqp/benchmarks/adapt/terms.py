"""Effect of CA-HQP's terms during adaptation, from the `metrics.csv` of finished runs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

METRICS = "metrics.csv"
_DIGITS = 5
_SHARE, _APART = "align/gradient_share_", "prompt/between_domains"
TERMS = ("dqfa", "tiafa", "prompt")


def term_effects(files: Iterable[Path]) -> dict[str, Any] | None:
    """Return the gradient shares of an arm's terms and the distance of its prompts; `None` if no term was logged.

    `shares` has the median, lowest and highest share of each term over all logged steps and seeds. `between_domains` is
    the distance of the prompts of source and target at the last logged step, by seed. 1 is 100 %; the definitions are
    those of the metrics `align/gradient_share_*` and `prompt/between_domains`.

    Args:
        files: `metrics.csv` of the arm's adaptations, one per seed. Missing ones are skipped: a stage whose files were
            removed has no metrics.
    """
    logs = [_read(path) for path in files if path.is_file()]
    shares = {term: [value for log in logs for value in log.get(_SHARE + term, [])] for term in TERMS}
    apart = [log[_APART][-1] for log in logs if _APART in log]
    if not any(shares.values()) and not apart:
        return None
    return {
        "shares": {term: _spread(values) for term, values in shares.items() if values},
        "between_domains": {
            "mean": round(mean(apart), _DIGITS) if apart else None,
            "each": [round(value, _DIGITS) for value in apart],
        },
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    spread = {"median": median(values), "lowest": min(values), "highest": max(values)}
    return {name: round(value, _DIGITS) for name, value in spread.items()}


def _read(path: Path) -> Mapping[str, Sequence[float]]:
    """Return the values of each column without the empty cells."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: [float(row[name]) for row in rows if row[name]] for name in (rows[0] if rows else ())}
    return {name: values for name, values in columns.items() if values}
