"""Calibration + goal -> Plan. Does not load torch and does not measure."""
