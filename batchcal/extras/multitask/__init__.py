"""Several tasks in one training: weights of their losses."""
