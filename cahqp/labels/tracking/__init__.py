"""Tracks of pseudo-boxes within a recording."""
