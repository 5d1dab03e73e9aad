"""HTML pages: their parts as values, one template, one style sheet."""
