"""The layers that stop a child before memory runs out: data limit and watchdog."""
