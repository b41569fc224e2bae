"""Detectors over frames, and their evaluation."""
