"""The package's own files, for tests that read them."""

import ast
from functools import cache
from pathlib import Path

import querykey

SOURCE = Path(querykey.__file__).parent
ROOT = SOURCE.parents[1]
MODULES = sorted(SOURCE.rglob("*.py"))


def module_name(path):
    return ".".join(("querykey", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


@cache
def parse(path):
    return ast.parse(path.read_text())
