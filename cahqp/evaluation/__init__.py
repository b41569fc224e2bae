"""Accuracy of detections, with confidence intervals."""
