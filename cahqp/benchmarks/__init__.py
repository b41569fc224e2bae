"""Benchmarks: adaptation, speed, gate, relabelling, soft labels."""
