"""The steps, written out, and the loops that take them."""
