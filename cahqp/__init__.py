"""Verified continual adaptation of object detectors: a cloud teacher, pseudo-labels, an edge student."""

__version__ = "0.1.0"
