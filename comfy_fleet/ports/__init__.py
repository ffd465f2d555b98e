"""What services need from outside, as Protocols. Adapters implement them; nothing here does I/O.

Everything is async; every id is a string; every time is Unix seconds.
"""
