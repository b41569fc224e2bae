"""Score calibration and thresholds."""
