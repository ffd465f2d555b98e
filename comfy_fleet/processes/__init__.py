"""The fleet's long-running processes, put together."""
