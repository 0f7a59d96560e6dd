"""Reports of the grids of studies as Markdown."""
