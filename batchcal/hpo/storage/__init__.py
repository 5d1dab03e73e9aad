"""Storage of a study, and the presence of its workers."""
