"""Verified continual adaptation of object detectors: a cloud teacher, pseudo-labels, an edge student."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cahqp.predictor import Predictor

__version__ = "0.1.0"


def load(path: Path | str) -> Predictor:
    """Return a model file's detector; see `cahqp.predictor`. Imports torch only when called."""
    from cahqp.predictor import load as load_predictor

    return load_predictor(path)
