"""The parent's side of the measuring children: requests, launchers, and the meaning of answers."""
