"""What is measured and trained: the Task, how a SPEC becomes one, the one step, the worst-case batches."""
