"""Frozen models: found by name, fingerprinted, run in batches of a measured size."""
