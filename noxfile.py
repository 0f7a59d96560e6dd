"""The tests under every Python that is found, with the newest and the lowest dependencies.

    nox                       every session
    nox -s "core-3.11(pins='lowest')"      the core alone: no torch
    nox -s "tests-3.11(pins='newest')"

A Python that is not installed is skipped, with its reason.
"""

import tomllib
from pathlib import Path

import nox

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TESTS = ("tests/adapter", "tests/lookup", "tests/losses", "tests/runtime")

CORE = """
import sys
import numpy as np
from querykey.runtime import load
np.save("X.npy", np.eye(6))
assert load(sys.argv[1]).transform(np.eye(6)).shape == (6, 3)
assert not {"torch", "sklearn"} & set(sys.modules)
"""

nox.options.sessions = ["core", "tests"]
nox.options.error_on_missing_interpreters = False


def lowest(*extras: str) -> list[str]:
    """The lowest version of each direct dependency, and of those of extras, as pins."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    needed = [
        *project["dependencies"],
        *(line for extra in extras for line in project["optional-dependencies"][extra]),
    ]
    return [line.replace(">=", "==") for line in needed if ">=" in line]


def require_wheels(session: nox.Session, pins: str) -> None:
    """Skip a Python that the lowest dependencies are older than."""
    if pins == "lowest" and session.python != PYTHONS[0]:
        session.skip("the lowest dependencies have wheels for the lowest Python alone")


@nox.session(python=PYTHONS)
@nox.parametrize("pins", ["newest", "lowest"])
def core(session: nox.Session, pins: str) -> None:
    """The core in an environment without torch."""
    require_wheels(session, pins)
    session.install(".", *(lowest() if pins == "lowest" else []))
    folder = session.create_tmp()
    adapter = str(Path("tests/fixtures/adapter-0.1").absolute())
    with session.chdir(folder):
        session.run("python", "-c", CORE, adapter)
        session.run("querykey", "--version")
        session.run("querykey", "transform", adapter, "X.npy", "--out", "Z.npy")


@nox.session(python=PYTHONS)
@nox.parametrize("pins", ["newest", "lowest"])
def tests(session: nox.Session, pins: str) -> None:
    """The tests of the parts, with the newest or the lowest dependencies."""
    require_wheels(session, pins)
    session.install(".[dev]", *(lowest("train", "parquet") if pins == "lowest" else []))
    session.run("python", "-m", "pytest", "-q", *TESTS, env={"OMP_NUM_THREADS": "1"})
