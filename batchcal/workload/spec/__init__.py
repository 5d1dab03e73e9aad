"""The named task: its SPEC, module and config, its identity, and its import."""
