"""`querykey study`: what it lists, says and refuses."""

import pytest
from pretraining_toys import put_stripes

from querykey.io.records import read
from querykey.studies.catalogue import STUDIES


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return put_stripes(tmp_path_factory.mktemp("study") / "images", count=30, channels=3)


@pytest.fixture
def shortened(monkeypatch):
    """A study of two arms of which each scores what its place says."""
    from dataclasses import replace

    from querykey.studies.engine import run

    study = STUDIES["depth-and-width"]
    monkeypatch.setitem(
        STUDIES, study.name, replace(study, arms=study.arms[:3:2], questions=study.questions[:1])
    )
    scores = {"width 16": 0.5, "width 64": 0.6}

    def measure(cell):
        right = int(1000 * scores[cell.method]) + cell.seed
        return {
            "values": {"linear h": [right, 1000], "kNN h": [right - 100, 1000]},
            "run": {},
            "seconds": 1.0,
        }

    monkeypatch.setattr(run, "measure_cell", measure)
    return study.name


def test_list_names_every_study_at_80_columns(querykey):
    said = querykey("study", "list")
    assert said.code == 0
    assert set(STUDIES) <= set(said.out.splitlines())
    assert max(map(len, said.out.splitlines())) <= 80
    assert "SimCLR, arXiv:2002.05709, fig. 5; 28 arms, 36 cells" in said.flat


def test_a_study_ends_with_its_arms_and_verdicts(querykey, images, tmp_path, shortened):
    command = ("study", shortened, "--data", images, "--out", tmp_path / "width", "--jobs", 1)
    said = querykey(*command)
    assert said.code == 0, said.err
    assert f"every arm sees {STUDIES[shortened].images:,} images" in said.err
    assert "6 of 6: width 64, seed 2: linear h 0.602, kNN h 0.502 (1 s)" in said.err
    for words in (
        STUDIES[shortened].asks, "small_cnn:16", "0.501", "0.601",
        "Is width 64 better than 16?", "yes: 0.601 against 0.501: +0.100 [+0.100, +0.100], 3 seeds",
        "published: yes: larger is better (fig. 7)", f"next: querykey report {tmp_path / 'width'}",
    ):  # fmt: skip
        assert words in said.flat
    again = querykey(*command)
    assert again.out == said.out
    assert "is resumed as it was planned" in again.err
    assert len(read(tmp_path / "width" / "records.jsonl")) == 6


def test_a_trial_says_that_it_is_one(querykey, images, tmp_path):
    said = querykey("study", "h-against-z", "--data", images, "--out", tmp_path / "trial", "--smoke")
    assert said.code == 0, said.err
    assert "a trial run: it shows only that everything works" in said.out
    assert "can't tell" in said.out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("momentun", "--data", "x", "--out", "y"), "there is no study 'momentun' (nearest: 'momentum')"),
        (("momentum", "--data", "x"), "a study needs --data SOURCE and --out DIR"),
        (("momentum", "--data", "nothing-here", "--out", "y"), "nothing-here"),
    ],
)
def test_missing_data_of_a_study_are_one_message(querykey, given, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = querykey("study", *given)
    assert said.code == 2
    assert words in " ".join(said.err.split())
    assert list(tmp_path.iterdir()) == []
