"""Runs the cells of a study, within a budget, and goes on where it stopped."""
