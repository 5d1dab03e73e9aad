"""Shapes of a model that are asked about and not measured."""
