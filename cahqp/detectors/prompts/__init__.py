"""Visual Prompt Generator: part of a model file."""
