"""Decoded images, in memory or as they are needed."""
