"""Every example runs, and so does every block of the README and the docs."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from architecture.source import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
README = (ROOT / "README.md").read_text()
DOCUMENTED = [
    text
    for page in sorted((ROOT / "docs").glob("*.md"))
    for language, _, text in BLOCK.findall(page.read_text())
    if language == "python"
]
PYTHON_BLOCKS = [block for block in BLOCK.findall(README) if block[0] == "python"]
SHELL_LINES = [
    line
    for language, _, text in BLOCK.findall(README)
    if language in ("sh", "bash", "console")
    for line in text.splitlines()
    if line.lstrip("$ ").startswith("querykey ")
]


def run(command, cwd):
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}  # noqa: PTH120
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    missing = re.search(r"No module named '(\w+)'", done.stderr)
    if done.returncode and missing and not find_spec(missing[1]):
        pytest.skip(f"needs {missing[1]}, which is not installed")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    run([sys.executable, str(path)], tmp_path)


@pytest.mark.parametrize("block", range(len(PYTHON_BLOCKS)))
def test_a_python_block_of_the_readme_runs(block, tmp_path):
    """Blocks go on from one another, as a reader types them."""
    code = "\n".join(text for _, _, text in PYTHON_BLOCKS[: block + 1])
    run([sys.executable, "-c", code], tmp_path)


@pytest.mark.parametrize("block", range(len(DOCUMENTED)))
def test_a_python_block_of_the_docs_runs(block, tmp_path):
    run([sys.executable, "-c", DOCUMENTED[block]], tmp_path)


@pytest.mark.parametrize("line", SHELL_LINES)
def test_a_command_of_the_readme_has_options_that_exist(line, tmp_path):
    """The data of its examples are the reader's own, so the grammar of the line is what can be tested."""
    import shlex

    from typer.main import get_command

    from querykey.cli.main import app

    name, *arguments = shlex.split(line.lstrip("$ "), comments=True)[1:]
    command = get_command(app).get_command(None, name)
    assert command is not None, f"no command {name}"
    command.make_context(name, arguments)
