"""Running code that may die: the zygote and its children, the fence, the meters, the watchdog, the outcome."""
