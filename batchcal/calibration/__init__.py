"""The calibration: the central value, which measuring writes and all other packages read."""
