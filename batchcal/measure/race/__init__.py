"""What is fastest: candidates in interleaved rounds, judged by paired ratios. Somebody else runs them."""
