"""Search space, pruners, and families of studies."""
