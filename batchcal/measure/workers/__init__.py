"""DataLoader workers before any is used: whether they return the samples of the process, and what they come to hold."""
