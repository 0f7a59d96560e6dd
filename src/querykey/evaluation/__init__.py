"""How good an embedding is, always beside its baselines."""
