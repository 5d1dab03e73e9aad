"""Growth of glibc's heap over many steps: where batches change their shapes, and where they come from DataLoader workers."""
