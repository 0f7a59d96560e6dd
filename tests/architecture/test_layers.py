"""Imports go downwards only, and what must load fast loads little."""

import subprocess
import sys
import tomllib

import pytest
from architecture.source import MODULES, ROOT, SOURCE, module_name

HEAVY = {"torch", "numpy", "pydantic", "datasets", "sklearn", "pyarrow", "rich"}


def loaded_by(code):
    """The top-level modules that a fresh Python has loaded after running the code."""
    code += "\nimport sys; print(*sys.modules, sep='\\n', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


def test_imports_go_downwards_only():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_every_module_stands_in_a_layer():
    """A module that is in no layer may import anything without the linter seeing it."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    named = {name.strip(" ()") for line in contract["layers"] for name in line.split("|")}
    rooms = {module_name(path).split(".")[1] for path in MODULES if path.parent != SOURCE}
    rooms |= {path.stem for path in MODULES if path.parent == SOURCE} - {"__init__", "__main__"}
    assert rooms <= named


def test_help_loads_few_modules():
    code = "import sys; sys.argv = ['querykey', '--help']\nfrom querykey.cli.main import app\n"
    code += "try: app()\nexcept SystemExit: pass"
    assert not loaded_by(code) & HEAVY


@pytest.mark.parametrize(
    "command",
    ["embed", "adapt", "evaluate", "transform", "search", "export", "doctor", "study", "report", "compare"],
)
def test_help_of_a_command_loads_few_modules(command):
    code = f"import sys; sys.argv = ['querykey', {command!r}, '--help']\nfrom querykey.cli.main import app\n"
    code += "try: app()\nexcept SystemExit as end: assert not end.code"
    # newer typer parses typed options with pydantic where it is installed
    assert not loaded_by(code) & (HEAVY - {"pydantic"})


@pytest.mark.parametrize(
    "module", ["querykey", "querykey.config.parsing", "querykey.io.records", "querykey.reports"]
)
def test_what_reads_and_reports_loads_without_torch(module):
    assert "torch" not in loaded_by(f"import {module}")


def test_nothing_below_config_loads_what_the_command_line_needs():
    rooms = "adapter.fit", "features.embed", "features.features", "evaluation.protocol"
    loaded = loaded_by("\n".join(f"import querykey.{room}" for room in rooms))
    assert not loaded & {"pydantic", "typer", "rich"}
    optional = {"datasets", "torchvision", "timm", "sentence_transformers", "onnx", "onnxruntime", "faiss"}
    assert not loaded & optional
