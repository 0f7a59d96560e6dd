"""The site builds strictly, a page begins with what the reader wants, and the blocks of quick pages run."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from architecture.source import ROOT

DOCS = ROOT / "docs"
QUICK = ("command-line", "look-up", "own-loop", "serve", "exactness")
"""Pages whose blocks take seconds; `make docs` runs those of all pages, and the notebooks."""


def run_page(page, cwd):
    """Run a page's blocks, with the `querykey` of this Python in reach."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    runner = Path(__file__).with_name("page_blocks.py")
    done = subprocess.run(
        [sys.executable, str(runner), str(page)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", QUICK)
def test_the_blocks_of_a_page_run(name, tmp_path):
    (page,) = DOCS.rglob(f"{name}.md")
    assert "```python" in page.read_text() or "```sh" in page.read_text()
    run_page(page, tmp_path)


WRITTEN = [
    page for page in sorted(DOCS.rglob("*.md")) if page.parent.name != "adr" and page.stem != "results"
]
"""Pages that no program writes."""


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_starts_with_a_table_of_wants(page):
    head = page.read_text().splitlines()[:4]
    assert head[0].startswith("# ")
    assert re.fullmatch(r"\| You want \| (Call|Look at|Write) \|", head[2]), head
    assert head[3] == "|---|---|"


@pytest.mark.skipif(not importlib.util.find_spec("material"), reason="mkdocs-material is not installed")
def test_the_site_builds_without_a_warning(tmp_path):
    """No dead link, no page that the navigation forgot; and nothing that a reader's browser would fetch."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    done = subprocess.run(
        [*command, str(tmp_path / "site")],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    fetched = re.compile(r"<(?:script|img|link)[^>]+(?:src|href)=\"?https?://")
    assert [page.name for page in pages if fetched.search(page.read_text())] == []


def test_the_list_of_decisions_and_of_commands_is_whole():
    from querykey.cli.main import COMMANDS

    listed = (DOCS / "adr" / "README.md").read_text()
    assert [path.name for path in DOCS.glob("adr/0*.md") if f"({path.name})" not in listed] == []
    shown = (DOCS / "reference" / "command-line.md").read_text()
    assert [name for name in COMMANDS if f"| `{name}` |" not in shown] == []


def test_notebooks_hold_what_they_print_and_no_more():
    paths = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
    assert len(paths) == 6
    for path in paths:
        cells = json.loads(path.read_text())["cells"]
        printed = [one for cell in cells for one in cell.get("outputs", [])]
        assert printed, f"{path.name}: run it, then scripts/clean_notebooks.py"
        assert {one.get("name") for one in printed} == {"stdout"}, path.name
        assert {cell.get("execution_count") for cell in cells} == {None}
