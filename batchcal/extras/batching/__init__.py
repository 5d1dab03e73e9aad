"""Selection of the samples that train together, and their batches."""
