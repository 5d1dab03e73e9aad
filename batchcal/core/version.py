"""Version of batchcal. Every package may read it."""

__version__ = "0.1.0"
