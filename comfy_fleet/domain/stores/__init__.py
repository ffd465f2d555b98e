"""Places outside of the fleet into which outputs are put, and the names that they get there."""
