"""Races for the fastest candidate: interleaved rounds, judged by paired ratios. The caller runs the candidates."""
