"""Reports from records; nothing here trains."""
