"""Measurement of commands: each probe starts the command once and stops it after some optimizer steps."""
