"""Cycles of several rounds."""
