"""The feature store: embed, write, read, go on after an interruption."""
