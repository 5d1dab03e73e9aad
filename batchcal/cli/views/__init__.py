"""Values -> what a person sees: Rich renderables for the terminal, one HTML page."""
