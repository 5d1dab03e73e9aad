"""One file per verb. Verbs are thin: options, a library function, a view. Imports are in the bodies, for a quick --help."""
