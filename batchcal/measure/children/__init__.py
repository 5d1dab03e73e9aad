"""Children that measure, from outside: what is asked of them, how they are started, what their answers mean."""
