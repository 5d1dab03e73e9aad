"""Parts of training that a reader of the core does not need: batches by memory, several task losses."""
