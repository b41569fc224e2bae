"""What sees: the teacher DINO, the student RT-DETR, and transformers' as students. Plain modules, no Lightning."""

from cahqp.detectors.base import Detector, Features, Output
from cahqp.detectors.dino import DINO
from cahqp.detectors.huggingface.detector import HuggingFaceDetector
from cahqp.detectors.rtdetr import RTDETR

__all__ = ["DINO", "RTDETR", "Detector", "Features", "HuggingFaceDetector", "Output"]
