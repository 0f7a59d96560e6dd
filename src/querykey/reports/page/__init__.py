"""One HTML page of runs and studies: verdicts, charts, and how to reproduce them."""

from querykey.reports.page.page import figures_of, render, sections_of

__all__ = ["figures_of", "render", "sections_of"]
