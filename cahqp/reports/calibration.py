"""Page of `cahqp calibrate`: calibration errors and a reliability diagram of each class, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cahqp.labels.calibration.curves import expected_error, reliability
from cahqp.labels.calibration.file import Calibration
from cahqp.reports.page import write_page


def write_calibration_page(
    path: Path, calibration: Calibration, per_class: Mapping[str, Mapping[str, Any]], summary: str
) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        calibration: Fitted curves with the scores and hits that they were fitted on.
        per_class: Detections, objects and calibration errors (`before` and `after`, 0..1) by class.
        summary: Sentence about the error on recordings that the curves were not fitted on.
    """
    diagrams = []
    for name in calibration.curves:
        for state, scores in (("before", calibration.scores[name]), ("after", calibration.calibrated(name))):
            bins = reliability(scores, calibration.hits[name])
            diagrams.append({"title": f"{name}, {state}", "bins": bins, "error": expected_error(bins)})
    write_page(path, "calibration.html.j2", summary=summary, per_class=per_class, diagrams=diagrams)
