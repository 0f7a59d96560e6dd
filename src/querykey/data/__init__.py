"""What the user has, what the frozen model made of it, and the order it is read in."""
