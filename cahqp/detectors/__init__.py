"""Detectors: DINO (teacher), RT-DETR and models of transformers (students). Plain modules without Lightning."""

from cahqp.detectors.base import Detector, Features, Output
from cahqp.detectors.dino import DINO
from cahqp.detectors.huggingface.detector import HuggingFaceDetector
from cahqp.detectors.rtdetr import RTDETR

__all__ = ["DINO", "RTDETR", "Detector", "Features", "HuggingFaceDetector", "Output"]
