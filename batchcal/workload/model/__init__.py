"""Model, loss and optimizer of a task: what a training step needs to know about them."""
