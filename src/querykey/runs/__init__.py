"""What the commands do with a folder: begin, go on, measure, compare, search."""
