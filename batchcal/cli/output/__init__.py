"""Output of commands: the result on stdout, messages and progress on stderr, pages in files."""
