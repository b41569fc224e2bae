"""What sees: the teacher DINO and the student RT-DETR. Plain modules, no Lightning."""

from cahqp.detectors.dino import DINO
from cahqp.detectors.output import Detector, Features, Output
from cahqp.detectors.rtdetr import RTDETR

__all__ = ["DINO", "RTDETR", "Detector", "Features", "Output"]
