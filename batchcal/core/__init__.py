"""What everything rests on and what knows nothing of batches: values, errors, units, files, clock, settings."""
