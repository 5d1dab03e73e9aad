"""The waist: one value that measuring writes and everything else reads."""
