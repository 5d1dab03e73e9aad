"""Plan -> training."""
