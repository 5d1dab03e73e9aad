"""One file a verb. Thin: options in, a library's function, a view out. Imports stand in the bodies, for a quick --help."""
