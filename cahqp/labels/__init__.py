"""Pseudo-labels: calibration, tracking, fusion, rules, shards and file formats. Imports no torch."""
