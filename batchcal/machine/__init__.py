"""Facts about this machine and its container: control groups, memory meters, allocator libraries."""
