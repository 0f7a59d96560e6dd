"""The page of all studies, and the script that runs them."""

import importlib.util
from pathlib import Path

import pytest
from report_samples import CELLS, cell, study, write_study

from querykey.reports.markdown.studies import claim, write_studies
from querykey.runs.data import DataAt
from querykey.studies.catalogue import STUDIES
from querykey.studies.engine.data import StudyFeatures


@pytest.fixture
def script():
    """scripts/studies.py as a module."""
    path = Path(__file__).parents[2] / "scripts" / "studies.py"
    spec = importlib.util.spec_from_file_location("studies_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """Of two studies: in one the paper says yes and so do its cells, in the other no and nothing."""
    write_study(tmp_path / "momentum", records=[*CELLS, *(cell("still", seed, 0.5) for seed in range(3))])
    ask = {"ask": "Is slow better than fast?", "ours": ["slow", "kNN h"], "theirs": ["fast", "kNN h"]}
    asked = [ask | {"published": "no: as good (fig. 3)"}, ask | {"ask": "Is it?", "published": "not asked"}]
    write_study(tmp_path / "other", described=study(asked=asked))
    return tmp_path


def rows(text, first):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines() if line.startswith(first)
    ]  # fmt: skip


def test_each_claim_stands_with_its_verdict_and_the_count(folder):
    write_studies(folder)
    text = (folder / "README.md").read_text()
    mine = "[momentum](#momentum)", "[other](#other)"
    assert rows(text, "| [") == [
        [mine[0], "Is slow better than fast?", "**yes**", "confirmed"],
        [mine[0], "Is still better than fast?", "**can't tell**", "can't tell"],
        [mine[1], "Is slow better than fast?", "**yes**", "not confirmed"],
        [mine[1], "Is it?", "**yes**", "no claim"],
    ]
    assert "Of 3 claims: 1 confirmed, 1 not confirmed, 1 can't tell. 1 more questions" in text
    found = rows(text, "| Is slow")[0]
    assert found[1:] == ["**yes**", found[2], "yes, by 3 points"]
    assert found[2].startswith("0.610 against 0.500: +0.110 [+0.")
    assert "6 of 9 cells are measured." in text.partition("## other")[2]
    assert "cells are measured" not in text.partition("## other")[0]


def test_its_figures_are_files_beside_it_and_the_same_records_give_the_same_bytes(folder):
    write_studies(folder)
    names = {"momentum-1.svg", "momentum-2.svg", "other-1.svg", "other-2.svg"}
    assert {path.name for path in (folder / "figures").iterdir()} == names
    text = (folder / "README.md").read_text()
    assert "![kNN against momentum](figures/momentum-1.svg)\n\nMean of 3 seeds; whiskers" in text
    assert (folder / "figures" / "momentum-1.svg").read_text().startswith("<svg")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write_studies(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_trial_is_labelled_as_one(tmp_path):
    write_study(tmp_path / "momentum", described=study(is_trial=True))
    write_studies(tmp_path)
    assert "A trial run: its numbers mean nothing." in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("broken", [None, "{", '{"format": "querykey study", "version": 9}'])
def test_what_cannot_be_read_is_said(script, tmp_path, capsys, broken):
    if broken is not None:
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "study.json").write_text(broken)
    assert script.main(["papers", "--report", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert str(tmp_path) in said
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_what_is_published_begins_with_its_answer(study):
    for question in study.questions:
        assert (claim("yes", question.published) == "no claim") == (question.published == "not asked")


def test_the_script_runs_every_study_on_its_data(script, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        script, "run_study", lambda study, data, out, **_: ran.append((out.name, study.name, data))
    )
    monkeypatch.setattr(
        script.FrozenDataSet, "open",
        lambda data, *_: StudyFeatures(train=DataAt(f"{data.name}-train"), test=DataAt(f"{data.name}-test")),
    )  # fmt: skip
    written = []
    monkeypatch.setattr(script, "write_studies", written.append)
    for name in ("cifar10", "omniglot"):
        (tmp_path / name).mkdir()
    given = ["papers", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert script.main(given) == 0
    found = {name: (study, data) for name, study, data in ran}
    assert {study for study, _ in found.values()} == set(STUDIES)
    assert found["momentum"][1].train.spec == str(tmp_path / "cifar10")
    assert (found["drift"][1].train.split, found["drift"][1].test.split) == ("train", "test")
    assert found["drift"][1].train.spec == str(tmp_path / "omniglot")
    assert found["adapter-banking77"][1].test.spec == "banking77-test"
    assert written == [tmp_path / "out"]
    ran.clear()
    assert script.main([*given, "--only", "dr*"]) == 0
    assert [name for name, *_ in ran] == ["drift"]


def test_the_script_says_which_data_it_lacks(script, tmp_path, capsys):
    given = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert script.main(["papers", "--only", "momentum", *given]) == 2
    assert f"{tmp_path / 'cifar10'} is not there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        script.main(["papers", "--only", "momentun", *given])
    assert "no study 'momentun'" in capsys.readouterr().err
