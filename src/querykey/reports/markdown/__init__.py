"""Reports of studies as Markdown."""
