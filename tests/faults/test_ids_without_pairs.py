"""Queries and documents that occur in no pair are legal: they change no score and break nothing."""

import json

import numpy as np
import pytest
import torch
from frozen_toys import text_encoder
from typer.testing import CliRunner

from querykey import Adapter, read_features, read_source
from querykey.cli.main import app
from querykey.features.embed import embed

D = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Q = D + 0.1 * torch.randn(40, 4, generator=torch.Generator().manual_seed(1))


def fitted(queries, pairs, **settings):
    adapter = Adapter(dim=3, batch_size=8, candidates="closed_form", **settings)
    return adapter.fit_pairs(queries, D, pairs=pairs)


@pytest.mark.parametrize("side", ["both", "query"])
@pytest.mark.parametrize("without", [[0], [39], [3, 4, 5, 20], list(range(0, 40, 2))])
def test_queries_without_a_pair_change_nothing(without, side):
    answered = np.setdiff1d(np.arange(40), without)
    settings = {"side": side, "dim": 4} if side == "query" else {}
    adapter = Adapter(**{"dim": 3, "batch_size": 8, "candidates": "closed_form", **settings})
    found = adapter.fit_pairs(Q, D, pairs=np.stack([answered, answered], axis=1))
    moved, report = found.transform(Q), found.report_
    rest = np.stack([np.arange(len(answered)), answered], axis=1)
    found = adapter.fit_pairs(Q[answered], D, pairs=rest)
    assert found.transform(Q).equal(moved)
    same = set(report) - {"seconds"}
    assert {name: report[name] for name in same} == {name: found.report_[name] for name in same}


def test_the_last_document_may_have_no_pair():
    pairs = np.stack([np.arange(39), np.arange(39)], axis=1)
    assert fitted(Q, pairs).transform(D).shape == (40, 3)


def test_validation_queries_may_have_no_answer():
    pairs = np.stack([np.arange(5, 35), np.arange(5, 35)], axis=1)
    adapter = Adapter(dim=3, steps=0, batch_size=8).fit(D, queries=Q, pairs=pairs)
    assert adapter.report_["verdict"] in ("better", "no evidence", "start kept")
    assert -10 < adapter.report_["start"] < 0


LETTERS = [chr(97 + row % 26) * (1 + row // 26) for row in range(40)]


@pytest.fixture
def beir(tmp_path):
    """Forty documents and queries: 0 to 25 judged for training, the rest for tests, three with 0 only."""
    (tmp_path / "qrels").mkdir()
    for name, text in (("corpus", "a {}"), ("queries", "which {}")):
        lines = [json.dumps({"_id": f"{name[0]}{row}", "text": text.format(letters)})
                 for row, letters in enumerate(LETTERS)]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    zero = {0, 24, 39}
    for split, rows in (("train", range(25)), ("test", range(25, 40))):
        judged = [f"q{row}\tc{row}\t{int(row not in zero)}" for row in rows]
        judged += [f"q{row}\tc{(row + 1) % 40}\t0" for row in rows]
        (tmp_path / "qrels" / f"{split}.tsv").write_text("\n".join(judged) + "\n")
    return tmp_path


def test_a_beir_folder_with_train_and_test_judgements_is_fitted_and_evaluated(beir, tmp_path):
    train, test = (embed(read_source(beir, split=s), text_encoder(), tmp_path / s) for s in ("train", "test"))
    assert len(train.queries) == 25
    assert len(test.queries) == 15
    adapter = Adapter(dim=3, batch_size=8, candidates="closed_form")
    adapter.fit_pairs(train.queries, train, pairs=train.pairs[:, :2])
    assert -10 < adapter.report_["start"] < 0
    asked = {checked["queries"] for checked in adapter.report_["checked"].values()}
    assert asked <= {23}


def test_queries_judged_0_only_are_left_out_of_an_evaluation_and_counted(beir, tmp_path):
    def querykey(*words):
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    for split in ("train", "test"):
        querykey("embed", beir, "--split", split, "--model", "cli.models:letters", "--out", tmp_path / split)
    querykey("adapt", tmp_path / "train", "--pairs", "--out", tmp_path / "run", "--dim", 3, "--set",
             "candidates=closed_form", "--set", "batch_size=8")  # fmt: skip
    out = tmp_path / "table.json"
    querykey("evaluate", tmp_path / "run", "--on", tmp_path / "test", "--out", out)
    cells = json.loads(out.read_text())["methods"]
    assert read_features(tmp_path / "test").pairs.shape == (14, 3)
    counts = {name: {method["metrics"][name]["queries"] for method in cells.values()}
              for name in ("NDCG@10", "recall@10", "MRR@10", "overlap@10")}  # fmt: skip
    # the overlap with the frozen neighbours needs no answer
    assert counts == {"NDCG@10": {14}, "recall@10": {14}, "MRR@10": {14}, "overlap@10": {15}}
