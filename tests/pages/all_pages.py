"""Blocks of all pages; `make docs` runs them."""

import re

import pytest
from architecture.source import ROOT
from pages.test_pages import QUICK, run_page

PAGES = [
    page
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if re.search(r"^```(python|sh)$", page.read_text(), re.MULTILINE)
    and "#!/bin/sh" not in page.read_text()  # a script for a cluster
    and page.stem not in QUICK
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page, tmp_path):
    run_page(page, tmp_path)
