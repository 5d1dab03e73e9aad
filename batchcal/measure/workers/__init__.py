"""Trial of DataLoader workers before any is used: whether they return the process's samples, and how much memory they take."""
