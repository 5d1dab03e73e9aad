"""Views of a run: the values of its charts, drawn in characters and as SVG; the view on the terminal and the page."""
