"""Views of a calibration and its plan."""
