"""Sizes of micro-batches, changes of the sizes, and what a change must not affect."""
