"""Choice of the next size to try, without side effects. The caller runs each size and adds its result."""
