"""This machine, as the process may really use it. Every number says where it was learned. No torch, but in a child."""
