"""The base of all packages: errors, units, files, locks, clock, events, and the engine of settings. Independent of batches."""
