"""Use of rehearsals: what they allow, and what failed ones rule out."""
