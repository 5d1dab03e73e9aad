"""Calibration + goal -> Plan. Loads no torch and measures nothing."""
