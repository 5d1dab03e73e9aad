"""Samples and batches of a task: reading, sizes, the largest ones, and limits of DataLoader workers."""
