"""Records in calibration.json, one subject per module."""
