"""Worker processes of a study, and their shares of the machine."""
