"""Choice of the next size to try, as a pure ask-and-tell interface. The caller measures."""
