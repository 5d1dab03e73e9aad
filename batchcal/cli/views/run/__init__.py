"""A run, looked at: the values of its charts, in characters and as SVG; the terminal's view and the page."""
