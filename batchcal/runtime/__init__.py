"""Puts a Plan into force in this process: threads, allocator, loader, exact accumulation."""
