"""Running code that may die: the zygote and its children, commands, the fence, the watchdog, the outcome."""
