"""Several processes: who they are, what they exchange, and which rows each of them holds."""
