"""Estimates for shapes of a model, without measurements."""
