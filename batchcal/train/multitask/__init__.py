"""Several tasks in one training: how much each of their losses counts."""
