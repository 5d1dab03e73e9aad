"""Removal of everything that a child leaves behind: processes, files, shared names."""
