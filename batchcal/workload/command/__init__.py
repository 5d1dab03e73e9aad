"""Commands of the user: templates with placeholders, their identity, and the hook that observes them."""
