"""Verified continual adaptation of object detectors: a cloud teacher, pseudo-labels, an edge student."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cahqp.version import __version__ as __version__

if TYPE_CHECKING:
    from pathlib import Path

    from cahqp.predictor import Predictor


def load(path: Path | str) -> Predictor:
    """Return a `Predictor` for a model file; torch is imported only when this is called."""
    from cahqp.predictor import load as load_predictor

    return load_predictor(path)
