"""What a release carries says the same version and can be read."""

import importlib.util
import re
import subprocess
import sys

import pytest
from architecture.source import ROOT

import querykey

FRAGMENT = re.compile(r"\d{4}\.(added|changed|fixed|removed)\.md")


def test_the_citation_names_this_version():
    assert f"\nversion: {querykey.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_files_for_others_are_yaml():
    yaml = pytest.importorskip("yaml")
    files = [ROOT / "CITATION.cff", ROOT / ".pre-commit-config.yaml", *(ROOT / ".github").rglob("*.yml")]
    assert len(files) == 5
    assert all(isinstance(yaml.safe_load(path.read_text()), dict) for path in files)


def test_the_workflow_calls_make_check():
    assert "run: make check" in (ROOT / ".github/workflows/check.yml").read_text()


def test_every_fragment_has_a_name_that_the_changelog_takes():
    others = {"README.md", "template.md.j2"}
    names = {path.name for path in (ROOT / "changelog.d").iterdir()} - others
    assert names
    assert [name for name in names if not FRAGMENT.fullmatch(name)] == []


@pytest.mark.skipif(not importlib.util.find_spec("towncrier"), reason="towncrier is not installed")
def test_the_changelog_is_built_from_the_fragments():
    done = subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9.9"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "## 9.9.9 (" in done.stdout
    assert "### Added" in done.stdout
    assert "querykey.runtime.load(RUN).transform(x)" in done.stdout
