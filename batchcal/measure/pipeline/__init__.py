"""Measurement of the input pipeline alone: the DataLoader that delivers batches fastest. No model, no step."""
