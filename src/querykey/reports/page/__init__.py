"""One HTML page of runs and studies: what they found, their charts, and how to repeat them."""

from querykey.reports.page.page import figures_of, render, sections_of

__all__ = ["figures_of", "render", "sections_of"]
