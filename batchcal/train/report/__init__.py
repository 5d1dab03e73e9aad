"""Observation of a training: its log as JSON lines, other loggers, the monitor that feeds them, and the reader of logs."""
