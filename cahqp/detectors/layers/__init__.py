"""Building blocks that both detectors share."""
