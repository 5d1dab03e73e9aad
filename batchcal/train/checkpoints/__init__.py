"""State of a training on disk: contents, files, locks, and the schedule of saves."""
