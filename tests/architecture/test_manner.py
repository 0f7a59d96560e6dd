"""The manner of the house that no linter knows."""

import ast
import re
from collections import defaultdict

import pytest
from architecture.source import MODULES, ROOT, SOURCE, module_name, parse

import querykey

LONGEST_MODULE = 500
LONGEST_FUNCTION = 60
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "base", "core", "tools"}

each_module = pytest.mark.parametrize("path", MODULES, ids=module_name)


@each_module
def test_a_module_is_at_most_500_lines(path):
    assert len(path.read_text().splitlines()) <= LONGEST_MODULE


@each_module
def test_a_function_is_at_most_60_lines(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = len((ast.get_docstring(node, clean=False) or "").splitlines())
            length = node.end_lineno - node.lineno + 1 - doc
            assert length <= LONGEST_FUNCTION, f"{path}:{node.lineno} {node.name} has {length} lines"


@each_module
def test_a_file_name_says_what_it_contains(path):
    assert path.stem not in FORBIDDEN_NAMES
    assert path.parent.name not in FORBIDDEN_NAMES


@each_module
def test_a_module_says_what_it_is_for(path):
    assert ast.get_docstring(parse(path)), f"{path} has no docstring"


@each_module
def test_nothing_is_printed_below_the_command_line(path):
    if SOURCE / "cli" in path.parents:
        return
    calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    printing = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
    assert not printing, f"{path}: print in lines {printing}"


@each_module
def test_no_pickle(path):
    """Neither by name nor through torch, numpy or pandas, whose loaders read pickles unless told."""
    for node in ast.walk(parse(path)):
        match node:
            case ast.Import(names=names):
                roots = {name.name.split(".")[0] for name in names}
                assert not roots & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
            case ast.ImportFrom(module=str(module)):
                assert module.split(".")[0] not in {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
            case ast.Call(func=ast.Attribute(attr="load", value=ast.Name(id="torch")), keywords=keywords):
                safe = {word.arg: getattr(word.value, "value", None) for word in keywords}
                assert safe.get("weights_only") is True, f"{path}:{node.lineno} torch.load reads pickles"
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=allowed)):
                assert allowed is False, f"{path}: allow_pickle"
            case ast.Call(func=ast.Attribute(attr="save", value=ast.Name(id="torch"))):
                pytest.fail(f"{path}:{node.lineno} torch.save writes pickles")


@each_module
def test_annotations_are_not_postponed(path):
    """Types are read at run time: by the checks in these tests, by pydantic and by typer."""
    assert "from __future__ import annotations" not in path.read_text()


def test_public_names_are_the_documented_names():
    """A reader of docs/api.md sees what `from querykey import` offers, no more and no less."""
    documented = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(querykey.__all__)
    for name in querykey.__all__:
        assert getattr(querykey, name).__doc__, name


def listed_names(path):
    """What `__all__` lists."""
    for node in parse(path).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if getattr(target, "id", "") == "__all__":
                return ast.literal_eval(node.value)
    return []


def public_functions():
    """The functions that the package or one of its rooms exports."""
    public = {name for path in MODULES if path.stem == "__init__" for name in listed_names(path)}
    for path in MODULES:
        own = public & set(listed_names(path))
        for node in parse(path).body:
            if isinstance(node, ast.FunctionDef) and node.name in own:
                yield pytest.param(node, id=f"{module_name(path)}.{node.name}")


@pytest.mark.parametrize("function", public_functions())
def test_a_public_function_says_what_it_takes_and_gives(function):
    doc = ast.get_docstring(function) or ""
    assert doc, "no docstring"
    if function.args.args or function.args.kwonlyargs:
        assert "Args:" in doc
    if function.returns is not None and ast.unparse(function.returns) != "None":
        assert "Returns:" in doc or "Yields:" in doc


SAME_NAME = {"main"}
"""Names that are an interface: a program starts at its `main`."""


def definitions():
    """Name of each class and public function to the modules that define it."""
    found = defaultdict(list)
    for path in MODULES:
        for node in parse(path).body:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(node, ast.ClassDef) or (is_function and not node.name.startswith("_")):
                found[node.name].append(module_name(path))
    return found


def test_a_name_has_one_definition():
    """A reader who searches for a class or a public function finds one."""
    twice = {name: homes for name, homes in definitions().items() if len(homes) > 1}
    assert {name: homes for name, homes in twice.items() if name not in SAME_NAME} == {}


SKIP = "# fmt: " + "skip"
TABLES = (ast.List, ast.Tuple, ast.Dict, ast.Set)


def is_table(statement):
    """Whether a statement assigns or returns rows of data: a literal, or a call that has three or more."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.Return):
        return False
    value = statement.value
    given = [*value.args, *(word.value for word in value.keywords)] if isinstance(value, ast.Call) else []
    rows = [
        len(one.keys if isinstance(one, ast.Dict) else one.elts) for one in given if isinstance(one, TABLES)
    ]
    return isinstance(value, TABLES) or max(rows, default=0) >= 3


@each_module
def test_only_tables_are_laid_out_by_hand(path):
    statements = [node for node in ast.walk(parse(path)) if isinstance(node, ast.stmt)]
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if SKIP in line:
            around = [node for node in statements if node.lineno <= number <= node.end_lineno]
            innermost = max(around, key=lambda node: (node.lineno, -node.end_lineno))
            assert is_table(innermost), f"{path}:{number}: ruff format lays this out"
