"""Pseudo-label export."""
