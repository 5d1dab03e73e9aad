"""What is done about a batch that does not fit: undone, made room for, run again in parts."""
