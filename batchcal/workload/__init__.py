"""The task that is measured and trained: its import, its optimizer step, its worst-case batches."""
