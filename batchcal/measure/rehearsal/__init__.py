"""Runs of complete plans: the fastest plan, the gain of each knob, and whether the chosen plan stays within its budget."""
