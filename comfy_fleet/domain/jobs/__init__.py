"""Jobs and their runs: states, results, outputs."""
