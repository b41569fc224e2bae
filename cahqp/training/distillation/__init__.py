"""Distillation from stored soft labels."""
