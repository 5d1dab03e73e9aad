"""What a batch needs, what there is, and the fence between the two."""
