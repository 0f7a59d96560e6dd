"""Studies: ablations as grids of runs, with verdicts."""
