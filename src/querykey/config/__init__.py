"""Reads run files and validates settings classes; it defines no settings."""
