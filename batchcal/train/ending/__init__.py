"""Ends of a training: stop requests, failures, early stopping."""
