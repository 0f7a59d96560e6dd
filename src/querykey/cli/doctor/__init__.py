"""`querykey doctor`: a look at the data and the machine, and what to type."""
