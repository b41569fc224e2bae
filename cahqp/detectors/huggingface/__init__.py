"""Detectors from `transformers`."""
