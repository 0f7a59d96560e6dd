"""Hooks of mkdocs: pages and files from outside docs/, and the notebooks as pages.

mkdocs.yml names this file under `hooks`. Pages link to each other as they do in the repository, so that a
link works in both places; here it is rewritten to the path of the page on the site.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "LOG.md", "SECURITY.md", "studies/README.md")
NOTEBOOKS = "examples/notebooks"
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, and a page a notebook."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for path in sorted((ROOT / NOTEBOOKS).glob("*.ipynb")):
        where = path.relative_to(ROOT).with_suffix(".md").as_posix()
        files.append(File.generated(config, where, content=page_of_notebook(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page to paths on the site, and add the files that it links to."""
    place = ROOT / page.file.src_uri if page.file.generated_by else DOCS / page.file.src_uri
    here = Path(page.file.src_uri).parent

    def moved(found: re.Match[str]) -> str:
        target, mark, anchor = found[2].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return found[0]
        path = (place.parent / target).resolve()
        if path.is_dir():
            path = path / "README.md"
        if path.suffix == ".ipynb" and path.exists():
            path = path.with_suffix(".md")
        where = path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()
        if files.get_file_from_path(where) is None and path.is_file():
            files.append(File.generated(config, where, abs_src_path=str(path)))
        return f"{found[1]}{Path(os.path.relpath(where, here)).as_posix()}{mark}{anchor}{found[3]}"

    parts = FENCE.split(markdown)
    return "".join(part if FENCE.fullmatch(part) else LINK.sub(moved, part) for part in parts)


def page_of_notebook(path: Path) -> str:
    """A notebook as Markdown: its text, its code, and what the code printed.

    Args:
        path: Of the notebook.

    Returns:
        The page.
    """
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts.extend(_shown(output) for output in cell.get("outputs", []))
    parts.insert(1, f"[The notebook itself]({path.name}){{ download }}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/svg+xml" in data:
        return "".join(data["image/svg+xml"])
    text = "".join(output.get("text", data.get("text/plain", []))).rstrip()
    return f"```text\n{text}\n```" if text else ""
