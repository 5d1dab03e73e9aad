"""Calibration + goal -> Plan. Pure: no torch, no measuring, no machine but the one it is told of."""
