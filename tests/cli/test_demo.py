"""The demonstration, as far as it can be tested without its minutes of embedding."""

import json

import pytest
from typer.testing import CliRunner

from querykey.cli.main import app
from querykey.data.readers.open import read_source
from querykey.studies import demo
from querykey.studies.demo import documented_in, write_collection

SUMMARY = "Give the shortest way between two places on a map"
REST = " ".join(f"word{number}" for number in range(80))


def package(folder, monkeypatch, files):
    """A package that would tell on us if it were imported."""
    root = folder / "documented"
    root.mkdir()
    (root / "__init__.py").write_text("raise SystemExit('imported')\n")
    for name, functions in files.items():
        text = "".join(
            f'def {f}():\n    """{summary}.\n\n    {rest}\n    """\n' for f, summary, rest in functions
        )
        (root / name).write_text(text)
    monkeypatch.syspath_prepend(folder)


def test_a_docstring_becomes_a_summary_and_a_body_cut_to_60_words(tmp_path, monkeypatch):
    package(
        tmp_path, monkeypatch, {"maps.py": [("route", SUMMARY, REST), ("_own", "A " + SUMMARY, REST[::-1])]}
    )
    (entry,) = documented_in(["documented", "not_there_at_all"], most=5)
    assert (entry.name, entry.summary) == ("documented.route", f"{SUMMARY}.")
    assert entry.rest.split() == REST.split()[:60]


def test_near_duplicates_tests_and_broken_files_are_left_out(tmp_path, monkeypatch):
    again = REST.replace("word5 ", "other ")
    other = REST.replace("word", "term")
    routes = [("route", SUMMARY, REST), ("way", "Another " + SUMMARY, again)]
    tests = [("more", "More on " + SUMMARY, other)]
    package(tmp_path, monkeypatch, {"maps.py": routes, "test_maps.py": tests})
    (tmp_path / "documented" / "broken.py").write_text("def (:\n")
    assert [entry.name for entry in documented_in(["documented"], most=5)] == ["documented.route"]


def test_a_package_gives_so_many_at_the_most_and_always_the_same(tmp_path, monkeypatch):
    files = {
        f"m{i}.py": [(f"f{i}", f"{SUMMARY} number {i}", REST.replace("word", f"w{i}x"))] for i in range(6)
    }
    package(tmp_path, monkeypatch, files)
    chosen = documented_in(["documented"], most=3)
    assert len(chosen) == 3
    assert documented_in(["documented"], most=3) == chosen


def test_entries_become_a_collection_that_every_command_reads(tmp_path, monkeypatch):
    package(tmp_path, monkeypatch, {"maps.py": [("route", SUMMARY, REST)]})
    write_collection(documented_in(["documented"], most=5), tmp_path / "data")
    source = read_source(tmp_path / "data")
    assert list(source.ids) == ["documented.route"]
    assert source.queries.items[0] == f"{SUMMARY}."
    assert source.pairs.tolist() == [[0, 0, 1]]
    assert json.loads((tmp_path / "data" / "corpus.jsonl").read_text())["_id"] == "documented.route"


def test_packages_are_either_fitted_on_or_measured_on():
    assert not set(demo.TRAIN) & set(demo.TEST)


@pytest.mark.parametrize(("prepared", "message"), [(True, "exists already"), (False, "querykey[demo]")])
def test_what_cannot_work_is_said_before_the_work(prepared, message, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "MODEL", "st:no_such_packaged_model")
    out = tmp_path / "out"
    if prepared:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    done = CliRunner().invoke(app, ["demo", "--out", str(out)])
    assert done.exit_code == 2
    assert message in done.output
    assert [path.name for path in tmp_path.rglob("*")] == (["out", "mine.txt"] if prepared else [])
