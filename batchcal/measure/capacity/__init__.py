"""Search for the largest batch that fits: devices and allocator policies one after another, one search for each."""
