"""Options of `cahqp recompose`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cahqp.errors import check_numbers


@dataclass(frozen=True, kw_only=True)
class RecomposeOptions:
    """Rebuild labelled frames of fixed cameras from an empty background and their labelled objects.

    The background is the median of the frames around, without the boxes. Objects that nobody labelled disappear with
    it, so they do not train as background.

    Attributes:
        labels: Directory of `cahqp relabel`, or a COCO file of labels, with its images.
        output: New directory for `labels.json` and `images/`. It is never overwritten.
        min_steady: Smallest share, 0..1, of its track in which an object was detected. Objects below it are left out;
            labels without tracks have none.
    """

    labels: Path
    output: Path
    min_steady: float = 0.0

    def __post_init__(self) -> None:
        """Check the range.

        Raises:
            ConfigError: `min_steady` is out of range.
        """
        check_numbers({"--min-steady": self.min_steady}, {})
