"""The feature store: embed, write, read, resume after an interruption."""
