"""Every example runs, and so does every block of the README and the docs."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from architecture.source import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
README = ROOT / "README.md"


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


def test_the_python_blocks_of_the_readme_run(tmp_path):
    """Blocks go on from one another, as a reader types them."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    run([sys.executable, "-c", "\n".join(blocks)], tmp_path)


def commands():
    """Every line of the README and the docs that calls querykey with names in place, indented ones too."""
    for page in (README, *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text()
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = "".join(blocks).splitlines() + re.findall(r"^ {4}(querykey .*)$", text, re.MULTILINE)
        for line in lines:
            if line.startswith("querykey ") and not re.search(r" --(help|version)|[A-Z]{3}|[|\[\\]", line):
                yield pytest.param(line, id=f"{page.stem}: {line}")


@pytest.mark.parametrize("line", dict.fromkeys(commands()))
def test_a_command_of_the_pages_has_options_that_exist(line):
    """The data of its examples are the reader's own, so the grammar of the line is what can be tested."""
    import shlex

    from typer.main import get_command

    from querykey.cli.main import app

    name, *arguments = shlex.split(line, comments=True)[1:]
    command = get_command(app).get_command(None, name)
    assert command is not None, f"no command {name}"
    command.make_context(name, arguments)
