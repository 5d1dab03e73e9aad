"""Growth of glibc's heap over many steps, if batches change their shapes or come from DataLoader workers."""
