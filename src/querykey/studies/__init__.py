"""Questions put to a grid of runs."""
