"""Memory that a batch needs, memory that is available, and the fence between the two."""
