"""The command line: the only package that uses Typer, Rich and exit."""
