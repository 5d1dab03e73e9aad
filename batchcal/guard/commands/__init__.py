"""Commands of the user as process trees, each under a supervisor."""
