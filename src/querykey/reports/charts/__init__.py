"""Charts: one specification, rendered as SVG for pages and files."""
