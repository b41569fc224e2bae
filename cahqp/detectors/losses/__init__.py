"""Boxes, targets, matching and the set criterion of all detectors."""
