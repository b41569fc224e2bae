"""Boxes, matching and the set criterion that both detectors train with."""
