"""Records made readable; nothing here trains."""
