"""docs/reliability.md promises what tests hold, and no decision rests on the clock on the wall."""

import ast
import re

import pytest
from architecture.source import MODULES, ROOT, module_name, parse

PAGE = ROOT / "docs" / "reliability.md"
NAMED = sorted(set(re.findall(r"`(test_\w+)`", PAGE.read_text())))
SAID = {"querykey.features.store": "created"}
"""Where the time of day is written down for a person, and under which name."""


def all_tests():
    """The names of all tests."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield node.name


THERE = set(all_tests())


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_is_named_is_there(name):
    assert name in THERE


def test_every_promise_names_a_test():
    promises = re.findall(r"^- (.*?)(?=^- |^#|^$|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(promises) > 20
    for promise in promises:
        assert re.search(r"`test_\w+`", promise), promise


def test_every_method_has_its_row():
    from querykey.pretraining.settings.methods import METHODS

    rows = dict(re.findall(r"^\| (adapter|[\w-]+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE))
    for name in ("adapter", *METHODS):
        cells = rows[name].split(" | ")
        assert len(cells) == 4, name
        for cell in cells:
            assert "`test_" in cell or cell.startswith("not applicable: "), f"{name}: {cell}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_decision_uses_wall_clock_time(path):
    """It jumps; what has to be waited for is counted by time.monotonic."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            if called in {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today"}:
                assert module_name(path) in SAID, f"{path}:{node.lineno} {called}"
