"""What to try next: pure ask and tell. Somebody else measures."""
