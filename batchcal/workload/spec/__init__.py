"""What the user named: the SPEC, its module and config, its identity, and its import."""
