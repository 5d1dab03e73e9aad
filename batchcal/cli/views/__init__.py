"""Views of values for the user: Rich renderables for the terminal, one HTML page."""
