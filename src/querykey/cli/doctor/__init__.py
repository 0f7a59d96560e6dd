"""`querykey doctor`: check data and machine, and suggest commands."""
