"""Division of an effective batch into micro-batches."""
