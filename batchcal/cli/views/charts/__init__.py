"""Charts as values, drawn in characters and as SVG."""
