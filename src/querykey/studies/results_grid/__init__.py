"""The grid behind docs/results.md: which cells there are, and how each is measured."""
