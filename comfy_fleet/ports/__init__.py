"""What services need from the outside. Adapters implement it; nothing here does I/O.

Everything is async; every id is a string; every time is Unix seconds.
"""
