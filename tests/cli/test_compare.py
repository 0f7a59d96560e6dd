"""`querykey compare`: what a person sees of runs beside each other, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from cli.conftest import FAST
from pretraining_toys import put_stripes, small_run

from querykey.evaluation.linear_evaluation import linear_evaluation
from querykey.pretraining import autotune
from querykey.runs.adapt import load_run
from querykey.runs.compare import compare_runs
from querykey.runs.data import DataAt
from querykey.runs.evaluate_adapter import evaluate_run
from querykey.runs.evaluate_encoder import evaluate_encoder


@pytest.fixture(scope="module", autouse=True)
def _measured_at_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "TRIALS", 1)
        patch.setattr(autotune, "STEADY_TRIALS", 1)
        yield


@pytest.fixture(scope="module")
def other_run(querykey, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "no-memory"
    options = ("--labels", "y", "--set", "memory=in_batch", *FAST)
    said = querykey("adapt", data / "train.npz", "--out", out, "--dim", 3, *options)
    assert said.code == 0, said.err
    return out


@pytest.fixture(scope="module")
def other_text_run(querykey, data, tmp_path_factory):
    """On features of another frozen model, of the same texts."""
    folder = tmp_path_factory.mktemp("other-letters")
    columns = ("--column", "text", "--label-column", "kind")
    model = ("--model", "cli.models:other_letters")
    querykey("embed", data / "texts.csv", *model, "--out", folder / "features", *columns)
    options = ("--dim", 4, "--labels", "label", *FAST)
    said = querykey("adapt", folder / "features", "--out", folder / "flipped", *options)
    assert said.code == 0, said.err
    return folder / "flipped"


@pytest.fixture(scope="module")
def pretrained(querykey, tmp_path_factory):
    """Two pretrainings of the same images, and a third of others."""
    folder = tmp_path_factory.mktemp("pretrained")
    put_stripes(folder / "train", count=16)
    put_stripes(folder / "test", count=10, seed=1)
    put_stripes(folder / "others", count=14, seed=2)
    for name, images, method in (
        ("views", "train", "simclr"), ("queue", "train", "moco"), ("elsewhere", "others", "simclr"),
    ):  # fmt: skip
        options = {"dictionary.capacity": 32, "batch_norm.groups": 2} if method == "moco" else {}
        said = querykey(*small_run(folder / images, folder / name, method, steps=3, **options))
        assert said.code == 0, said.err
    return folder


def narrow(said):
    return max(map(len, said.out.splitlines())) <= 80


def refused(said, *words):
    """One message, exit code 2, and nothing on standard output."""
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    for one in words:
        assert one in said.err
    return True


def test_settings_and_ends_stand_beside_each_other(querykey, labelled_run, other_run):
    said = querykey("compare", labelled_run, other_run)
    assert (said.code, said.err) == (0, "")
    assert narrow(said)
    lines = [line.split() for line in said.out.splitlines()]
    assert ["labelled", "no-memory"] in lines
    assert ["dim", "4", "3"] in lines
    assert ["memory.kind", "cross_batch", "in_batch"] in lines
    assert any(line[:1] == ["verdict"] for line in lines)
    assert "others are the same" in said.out
    assert "data and environment are the same" in said.out
    assert "final metrics as recorded, without intervals" in said.out
    assert not any(line[:1] in (["seed"], ["batch_size"], ["R@1"]) for line in lines)


def test_on_data_all_are_scored_with_paired_intervals(querykey, labelled_run, other_run, data, tmp_path):
    on = ("--on", data / "test.npz", "--label-column", "y")
    said = querykey("compare", labelled_run, other_run, *on, "--out", tmp_path / "all.json")
    assert (said.code, said.err) == (0, "")
    assert narrow(said)
    told = json.loads((tmp_path / "all.json").read_text())
    methods = told["table"]["methods"]
    assert list(methods) == ["labelled", "no-memory", "frozen"]
    cell = methods["no-memory"]["metrics"]["R@1"]
    difference = cell["against"]["labelled"]
    assert difference["mean"] == pytest.approx(cell["mean"] - methods["labelled"]["metrics"]["R@1"]["mean"])
    assert "minus labelled" in said.out
    sign = "=" if not difference["excludes_zero"] else "+" if difference["mean"] > 0 else "-"
    shown = next(line.split() for line in said.out.splitlines() if line.startswith("no-memory"))
    assert shown[1:3] == ["3", f"{cell['mean']:.3f}"[1:] + sign]
    assert "90 queries, the same for all; marks against labelled: + better, - worse" in said.flat
    assert said.flat.endswith("all numbers, with intervals, protocol and versions ")


def test_long_names_give_way_to_numbers_and_long_values_to_blocks(
    querykey, labelled_run, other_run, data, tmp_path
):
    names = [f"a-run-that-someone-described-in-its-name-{number}" for number in range(12)]
    for number, name in enumerate(names):
        shutil.copytree(other_run if number else labelled_run, tmp_path / name)
    folders = [tmp_path / name for name in names]
    said = querykey("compare", *folders, "--on", data / "test.npz")
    assert said.code == 0, said.err
    assert narrow(said)
    lines = said.out.splitlines()
    assert lines[0] == f"1  {names[0]}"
    assert lines[11] == f"12  {names[11]}"
    place = lines.index("memory.kind")
    assert lines[place + 1 : place + 3] == ["  1   cross_batch", "  2   in_batch"]
    assert any(line.startswith("12  ") and line.split()[1] == "3" for line in lines[place:])
    assert "minus 1" in said.out
    assert "…" not in said.out


def test_runs_on_other_models_are_compared_on_a_source_alone(
    querykey, text_run, other_text_run, text_features, data
):
    columns = ("--column", "text", "--label-column", "kind")
    texts = ("--on", data / "texts.csv")
    said = querykey("compare", text_run, other_text_run, *texts, *columns)
    assert said.code == 0, said.err
    lines = [line.split() for line in said.out.splitlines()]
    assert "data and environment that differ" in said.out
    assert any(line[:2] == ["frozen", "model"] for line in lines)
    assert not any(line[:2] == ["frozen", "32"] for line in lines)
    assert any(line[:2] == ["flipped", "4"] for line in lines)
    assert "is what run, flipped was fitted on" in said.err
    assert refused(
        querykey("compare", text_run, other_text_run, "--on", text_features),
        "features of cli.models:letters, and the run was fitted on features of cli.models:other_letters",
    )


def test_pairs_are_searched_by_their_queries(querykey, data, tmp_path):
    columns = ("--column", "text", "--pair-column", "question")
    querykey(
        "embed", data / "texts.csv", "--model", "cli.models:letters", "--out", tmp_path / "pairs", *columns
    )
    sides = (("both", ("--dim", 4)), ("query", ("--side", "query", "--dim", 32)))
    for side, options in sides:
        said = querykey("adapt", tmp_path / "pairs", "--pairs", "--out", tmp_path / side, *options, *FAST)
        assert said.code == 0, said.err
    said = querykey("compare", tmp_path / "both", tmp_path / "query", "--on", tmp_path / "pairs")
    assert said.code == 0, said.err
    alone = evaluate_run(load_run(tmp_path / "query"), DataAt(str(tmp_path / "pairs")))
    score = f"{alone.cells['adapter']['NDCG@10'].value.mean:.3f}".removeprefix("0")
    shown = next(line.split() for line in said.out.splitlines() if line.startswith("query "))
    assert shown[1] == "32"
    assert shown[2].rstrip("+-=") == score
    assert "NDCG@10" in said.out
    assert "minus both" in said.out


def test_knn_uses_the_items_that_all_models_have_seen(text_run, other_text_run, data, tmp_path):
    lines = (data / "texts.csv").read_text().splitlines()
    (tmp_path / "new.csv").write_text("\n".join([lines[0], *(line + "!" for line in lines[1:9])]) + "\n")
    notes = []
    on = DataAt(str(tmp_path / "new.csv"), column="text", label_column="kind")
    found = compare_runs([text_run, other_text_run], on, notify=notes.append)
    assert "kNN" in found.table.metrics
    assert found.table.protocol["asked"] == 8
    assert notes == []


def test_pretrainings_beside_each_other(querykey, pretrained, tmp_path):
    runs = (pretrained / "views", pretrained / "queue")
    said = querykey("compare", *runs, "--on", pretrained / "test", "--out", tmp_path / "all.json")
    assert (said.code, said.err) == (0, "")
    assert narrow(said)
    lines = [line.split() for line in said.out.splitlines()]
    assert ["method", "simclr", "moco"] in lines
    assert ["dictionary.capacity", "none", "32"] in lines
    assert ["steps", "3", "3"] in lines
    for name in ("images/s", "kNN of the validation images", "effective rank of h", "loss"):
        assert f"\n{name} " in said.out
    told = json.loads((tmp_path / "all.json").read_text())
    assert told["ends"]["loss"].keys() == {"views", "queue"}
    alone = evaluate_encoder(pretrained / "queue", DataAt(str(pretrained / "test"))).cells
    metrics = told["table"]["methods"]["queue"]["metrics"]
    for side, method in (("h", "h"), ("z", "z = g(h)")):
        for metric in ("linear", "kNN"):
            assert metrics[f"{metric} {side}"]["mean"] == alone[method][metric].value.mean
    assert metrics["linear h"]["against"].keys() == {"views"}


def test_pretrainings_of_other_images_learn_from_those_of_the_first(querykey, pretrained, monkeypatch):
    banks, found = [], {}

    def seen(train, *others, **how):
        banks.append(len(train))
        if not found:  # a fit takes seconds, and here it matters who learns from what
            found["first"] = linear_evaluation(train, *others, **how)
        return found["first"]

    monkeypatch.setattr("querykey.runs.compare.linear_evaluation", seen)
    runs, on = (pretrained / "views", pretrained / "elsewhere"), ("--on", pretrained / "test")
    said = querykey("compare", *runs, *on)
    assert said.code == 0, said.err
    assert f"use {pretrained / 'train'}, the training images of views; train names others" in said.err
    assert banks == [32] * 4
    said = querykey("compare", *runs, *on, "--train", pretrained / "others")
    assert (said.code, said.err) == (0, "")
    assert banks[4:] == [28] * 4
    assert ["trained", "on"] in [line.split()[:2] for line in said.out.splitlines()]


def test_a_pretraining_that_is_not_finished_has_settings_and_no_scores(querykey, pretrained, tmp_path):
    shutil.copytree(pretrained / "queue", tmp_path / "half")
    (tmp_path / "half" / "encoder.json").unlink()
    said = querykey("compare", pretrained / "views", tmp_path / "half")
    assert said.code == 0
    assert "half is not finished" in said.err
    said = querykey("compare", pretrained / "views", tmp_path / "half", "--on", pretrained / "test")
    assert (said.code, said.out) == (2, "")
    assert "is a pretraining run that is not finished; resume it with querykey resume" in said.err


def test_what_cannot_be_compared_is_one_message(querykey, labelled_run, other_run, pretrained, tmp_path):
    assert refused(querykey("compare", labelled_run), "at least two runs are needed")
    assert refused(querykey("compare", labelled_run, labelled_run), "is given twice")
    assert refused(querykey("compare", labelled_run, tmp_path), "no run here")
    assert refused(querykey("compare", labelled_run, pretrained / "views"), "compare runs of one kind")
    both = ("compare", labelled_run, other_run)
    assert refused(querykey(*both, "--label-column", "y"), "--label-column: nothing is scored without --on")
    assert refused(querykey(*both, "--train", "a", "--split", "b"), "--train and --split: nothing is scored")
    assert refused(querykey(*both, "--on", tmp_path / "no.npz"), "no.npz")
    assert refused(querykey(*both, "--on", "x.npz", "--train", "y"), "train is for pretraining runs")


def test_nothing_is_written_over_or_half(querykey, labelled_run, other_run, data, tmp_path):
    (tmp_path / "there.json").write_text("mine")
    said = querykey("compare", labelled_run, other_run, "--out", tmp_path / "there.json")
    assert refused(said, "there.json exists already")
    assert (tmp_path / "there.json").read_text() == "mine"
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, X=torch.zeros(5, 7).numpy())
    said = querykey("compare", labelled_run, other_run, "--on", wrong, "--out", tmp_path / "new.json")
    assert refused(said, "rows are 7 wide; the run was fitted on 12")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.json", "wrong.npz"]
