"""Batch norm in groups, over shuffled groups, and over all processes or chunks."""
