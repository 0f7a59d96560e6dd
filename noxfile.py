"""The tests under every Python that is found, with the newest and the lowest dependencies.

    nox                       every session
    nox -s core-3.11          the core alone: no torch
    nox -s "tests-3.11(pins='newest')"

A Python that is not installed is skipped, with its reason.
"""

import re
import shutil
import sys
import tomllib
from pathlib import Path

import nox

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TESTS = ("tests/adapter", "tests/lookup", "tests/losses", "tests/runtime")

nox.options.sessions = ["core", "tests"]
nox.options.error_on_missing_interpreters = False


def lowest() -> list[str]:
    """The lowest version of each direct dependency, as pins."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    return [re.sub(r">=", "==", line) for line in needed if ">=" in line]


def require(session: nox.Session) -> None:
    """Skip a Python that is not there."""
    python = str(session.python)
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python != own and shutil.which(f"python{python}") is None:
        session.skip(f"Python {python} is not installed here")


@nox.session(python=PYTHONS)
def core(session: nox.Session) -> None:
    """The core in an environment without torch."""
    require(session)
    session.install(".")
    session.run("python", "-c", "import querykey.runtime, sys; assert 'torch' not in sys.modules")
    session.run("querykey", "--version")


@nox.session(python=PYTHONS)
@nox.parametrize("pins", ["newest", "lowest"])
def tests(session: nox.Session, pins: str) -> None:
    """The tests of the parts, with the newest or the lowest dependencies."""
    require(session)
    if pins == "lowest" and session.python != PYTHONS[0]:
        session.skip("the lowest dependencies have wheels for the lowest Python alone")
    session.install(".[dev]")
    if pins == "lowest":
        session.install(*lowest())
    session.run("python", "-m", "pytest", "-q", *TESTS, env={"OMP_NUM_THREADS": "1"})
