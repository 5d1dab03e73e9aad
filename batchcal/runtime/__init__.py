"""Apply a Plan in this process: threads, allocator, loader, exact accumulation."""
