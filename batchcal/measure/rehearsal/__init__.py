"""Plans as they will train: which of them is fastest, what each knob brings, and whether the chosen one stays in its budget."""
