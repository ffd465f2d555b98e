"""Which waiting job a node runs next: rules only, with state that a Redis script could keep.

Nothing here has a clock, chance or I/O. Times are seconds of one clock, the caller's.
"""
