"""Pairs from documentation: the summary line of a docstring asks, the rest of it answers."""

import ast
import hashlib
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["Documented", "documented_in", "write_collection"]

LONGEST_DOCUMENT = 60
SHORTEST_DOCUMENT, SHORTEST_QUERY, LONGEST_QUERY = 25, 4, 25
SHINGLE = 5
MOST_SHARED = 0.5
LARGEST_FILE = 150_000
_LEFT_OUT = re.compile(r"(^|/)(tests?|testing|conftest|_vendor|vendor|externals?|benchmarks?)(/|_|\.)")
_MARKUP = re.compile(r":\w+:(?=`)|[`*]+|^[ ]*[-=~^]{3,}[ ]*$|^[ ]*\.\. [\w:-]+.*$", re.MULTILINE)


@dataclass(frozen=True)
class Documented:
    """A public function or class with its documentation.

    Args:
        name: Package and name, such as "numpy.take".
        summary: The first paragraph of the docstring, one line.
        rest: What follows it, cut to 60 words.
    """

    name: str
    summary: str
    rest: str


def documented_in(packages: Sequence[str], *, most: int) -> list[Documented]:
    """The documented public functions and classes of installed packages, near-duplicates dropped.

    Sources are parsed, never imported or run. A package that isn't installed is passed over.

    Args:
        packages: Top-level names.
        most: Entries a package, >= 1. Files are read in the order of a hash of their names, so that
            a large package is sampled evenly, and always alike.

    Returns:
        Entries, package by package.
    """
    found: list[Documented] = []
    known: set[str] = set()
    for package in packages:
        taken = 0
        for entry in _entries(package):
            marks = {entry.name.lower(), entry.summary.lower(), *_shingles(entry.rest)}
            shared = sum(mark in known for mark in marks) / len(marks)
            if {entry.name.lower(), entry.summary.lower()} & known or shared > MOST_SHARED:
                continue
            known |= marks
            found.append(entry)
            taken += 1
            if taken == most:
                break
    return found


def write_collection(entries: Sequence[Documented], folder: Path) -> None:
    """Write entries as a BEIR folder, which every command reads.

    Args:
        entries: One query and one document each.
        folder: Made here.
    """
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": entry.name, "title": "", "text": entry.rest} for entry in entries]
    queries = [{"_id": f"about:{entry.name}", "text": entry.summary} for entry in entries]
    for name, rows in (("corpus", documents), ("queries", queries)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    judged = "".join(f"about:{entry.name}\t{entry.name}\t1\n" for entry in entries)
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")


def _entries(package: str) -> Iterator[Documented]:
    for path in _files(package):
        try:
            module = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue
        for node in module.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            pair = _split(ast.get_docstring(node) or "")
            if pair is not None:
                yield Documented(f"{package}.{node.name}", *pair)


def _files(package: str) -> list[Path]:
    spec = find_spec(package)
    if spec is None:
        return []
    if not spec.submodule_search_locations:
        return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []
    root = Path(next(iter(spec.submodule_search_locations)))
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    wanted = (name for name in files if not _LEFT_OUT.search(name))
    ordered = sorted(wanted, key=lambda name: hashlib.sha256(f"{package}/{name}".encode()).digest())
    return [files[name] for name in ordered if files[name].stat().st_size <= LARGEST_FILE]


def _split(doc: str) -> tuple[str, str] | None:
    """Summary and rest as plain words; None where either is too short, or not English prose."""
    first, _, rest = textwrap.dedent(doc).partition("\n\n")
    summary = _MARKUP.sub(" ", first).split()
    words = _MARKUP.sub(" ", rest.partition(">>>")[0]).split()
    if not (SHORTEST_QUERY <= len(summary) <= LONGEST_QUERY and len(words) >= SHORTEST_DOCUMENT):
        return None
    return " ".join(summary), " ".join(words[:LONGEST_DOCUMENT])


def _shingles(text: str) -> set[str]:
    words = text.lower().split()
    return {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
