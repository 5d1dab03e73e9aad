"""Environment + Task -> Calibration, by running the task's own step in fenced children."""
