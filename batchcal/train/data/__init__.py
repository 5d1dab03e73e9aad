"""Which samples train together, and how they become a batch."""
