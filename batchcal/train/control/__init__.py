"""Keeps a training within its memory: predicts, watches, adapts, recovers."""
