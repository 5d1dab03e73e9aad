"""How large micro-batches are, when that changes, and what it must not change."""
