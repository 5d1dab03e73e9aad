"""Recovery of a batch that does not fit: undo it, make room, run it again in parts."""
