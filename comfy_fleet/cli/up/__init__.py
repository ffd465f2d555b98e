"""``fleet up``: every process of a fleet on one machine, started, watched and stopped together."""
