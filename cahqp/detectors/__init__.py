"""Detectors: DINO (teacher), RT-DETR and models of transformers (students). Plain modules without Lightning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cahqp.detectors.base import AlignmentFeatures, AlignmentShape, Detector, Output
    from cahqp.detectors.dino import DINO
    from cahqp.detectors.huggingface.detector import HuggingFaceDetector
    from cahqp.detectors.rtdetr import RTDETR

__all__ = ["DINO", "RTDETR", "AlignmentFeatures", "AlignmentShape", "Detector", "HuggingFaceDetector", "Output"]
_MODULES = {"DINO": "dino", "RTDETR": "rtdetr", "HuggingFaceDetector": "huggingface.detector"}


def __getattr__(name: str) -> Any:
    """Import a detector at its first use: options of commands are read without torch."""
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'base')}"), name)
