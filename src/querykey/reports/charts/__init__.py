"""One description of a chart, drawn as SVG or as an interactive figure."""
