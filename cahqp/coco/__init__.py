"""COCO reading and validation; imports no torch."""
