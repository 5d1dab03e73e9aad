"""One trial: its child process, its results, its reruns."""
