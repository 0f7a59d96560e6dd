"""Exact gradients of a batch that is encoded in chunks, batch norm included."""
