"""Plain values that every package above may use."""
