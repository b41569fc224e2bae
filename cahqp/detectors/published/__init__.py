"""Conversion of published checkpoints to model files."""
