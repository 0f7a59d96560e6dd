"""Sizes and codes in docs/results.md: what is measured at each point, and the page that is made of it."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from querykey.evaluation.protocol import Examination
from querykey.evaluation.task import Protocol
from querykey.features.features import Features, write_features
from querykey.io.points import point_of
from querykey.io.study_folder import measures_of, open_study, read_study
from querykey.reports.markdown.results import write_results
from querykey.reports.markdown.sizes import sizes_report
from querykey.runs.data import DataAt
from querykey.studies.catalogue.results_sizes import RESULTS_SIZES
from querykey.studies.engine.baselines import matryoshka_adaptor, product_quantised, search_adaptor
from querykey.studies.engine.data import FitRows, StudyFeatures
from querykey.studies.engine.measure_sizes import measure_points
from querykey.studies.engine.run import run_study
from querykey.studies.engine.study import Arm, Figure, Question, Study

WIDTH = 16
FIT = {"dims": [16, 8], "bits": [8, 1], "labels": False, "steps": 2, "batch_size": 16}


def rows(count, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=draw) * torch.linspace(2, 0.2, WIDTH)


@pytest.fixture
def documents(tmp_path):
    common = {"labels": None, "label_names": (), "model_key": "toy"}
    queries = Features(vectors=rows(5, 1), ids=list("abcde"), previews=[""] * 5, **common)
    pairs = torch.tensor([[q, 2 * q, 1 + q % 2] for q in range(5)])
    some = Features(
        vectors=rows(40, 0), ids=[str(row) for row in range(40)], previews=[""] * 40, queries=queries,
        pairs=pairs, **common,
    )  # fmt: skip
    write_features(some, tmp_path / "documents")
    at = DataAt(str(tmp_path / "documents"))
    return StudyFeatures(train=at)


def measured(data, settings, measures):
    task, train = data.draw(seed=0, labels_a_class=None, pairs=None)
    return measure_points(Examination(task, Protocol()), train, settings, measures, 0)[0]


def arm(name, kind="adapter", **settings):
    return Arm(
        name=name, label=name, kind=kind, seeds=1, settings={"method": name, **settings}, group="chart"
    )


MEASURES = tuple(
    f"NDCG@10 at {one}" for one in ("16", "8", "16, 8 bits", "8, 8 bits", "16, 1 bit", "8, 1 bit")
)
TOY = Study(
    name="toy sizes",
    title="toy",
    asks="What is each size worth?",
    source="this library",
    caveat="Role of the measured part: none.",
    measured="NDCG@10",
    needs="features",
    arms=(arm("pca", "baseline", dims=[16, 8]), arm("ladder", **FIT)),
    references=("pca",),
    questions=(
        Question(
            ask="Are 8 numbers above PCA?", ours=("ladder", "NDCG@10 at 8"), theirs=("pca", "NDCG@10 at 8"),
            is_claim=True, min_seeds=1,
        ),
    ),
    figures=(Figure(kind="sizes", title="toy", measures=MEASURES, x="bytes", y="NDCG@10", log_x=True),),
    identity="fit",
)  # fmt: skip


@pytest.mark.parametrize(
    ("measure", "count"),
    [("R@1 at 64", 256), ("R@1 at 64, 8 bits", 64), ("R@1 at 64, 1 bit", 8), ("R@1 at 48 bytes", 48),
     ("R@1 at 64, 1 bit, rescored", 72), ("R@1 at 64, 95%", 256)],
)  # fmt: skip
def test_a_point_takes_its_bytes(measure, count):
    assert point_of(measure).bytes == count


def test_other_measures_are_no_points():
    assert [point_of(one) for one in ("kNN", "R@1", "NDCG@10 at", "R@1 at 64, 4 bits")] == [None] * 4


@pytest.mark.parametrize("study", [study for _, study in RESULTS_SIZES], ids=lambda study: study.name)
def test_a_study_asks_of_arms_and_points_that_it_has(study):
    names = {one.name for one in study.arms}
    for asked in study.questions:
        assert {asked.ours[0], asked.theirs[0]} <= names
        assert point_of(asked.ours[1]) is not None
        assert point_of(asked.theirs[1]) is not None
    assert set(study.references) <= names


def test_floats_at_a_size_are_the_first_numbers(documents):
    found = measured(documents, {"method": "truncated", "dims": [8]}, ["NDCG@10 at 8", "NDCG@10 at 16"])
    queries, keys = (F.normalize(some[:, :8], dim=1) for some in (rows(5, 1), rows(40, 0)))
    order = (queries @ keys.T).argsort(dim=1, descending=True)[:, :10]
    gains = (order == 2 * torch.arange(5)[:, None]) / torch.log2(torch.arange(2.0, 12.0))
    assert list(found) == ["NDCG@10 at 8"]  # 16 is no size of it
    torch.testing.assert_close(found["NDCG@10 at 8"], gains.sum(dim=1))


def test_codes_are_those_of_the_adapter(documents):
    wanted = [*MEASURES, "NDCG@10 at 16, 1 bit, rescored", "NDCG@10 at 16, 95%"]
    found = measured(documents, {"method": "ladder", **FIT}, wanted)
    assert set(found) == set(wanted)
    torch.testing.assert_close(found["NDCG@10 at 16, 95%"], 0.95 * found["NDCG@10 at 16"])
    # with fewer rows than candidates, rescoring ranks all rows by 8 bits
    torch.testing.assert_close(found["NDCG@10 at 16, 1 bit, rescored"], found["NDCG@10 at 16, 8 bits"])


def test_a_product_quantiser_keeps_rows_that_are_centroids(documents):
    pytest.importorskip("faiss")
    few = rows(256, 3)
    stored = product_quantised(few, 4, seed=0)(few)
    torch.testing.assert_close(stored, F.normalize(few, dim=1), atol=1e-3, rtol=0)
    assert set(measured(documents, {"method": "product quantisation"}, ["NDCG@10 at 5 bytes"])) == set()


def lost(z, frozen):
    z, frozen = (F.normalize(some, dim=1) for some in (z, frozen))
    return float((z @ z.T - frozen @ frozen.T).abs().mean())


def test_an_adaptor_begins_at_the_frozen_rows_and_keeps_their_scores_in_fewer_numbers():
    some = rows(60, 5).flip(1)  # the first numbers say least
    untrained, trained = (matryoshka_adaptor(some, [16, 4], seed=0, steps=steps)(some) for steps in (0, 60))
    torch.testing.assert_close(untrained, F.normalize(some, dim=1))
    assert lost(trained[:, :4], some) < 0.9 * lost(untrained[:, :4], some)


def test_a_search_adaptor_brings_queries_to_their_documents():
    documents, noise = rows(60, 6), rows(60, 7)
    noise[:, 3:] = 0.0  # the first numbers of a query say nothing
    pairs = torch.stack([torch.arange(60), torch.arange(60)], dim=1)
    train = FitRows(documents, None, documents + noise, pairs)

    def margin(steps):
        """Of the right documents before the others, mean cosine of 4 numbers."""
        moves = search_adaptor(train, [16, 4], seed=0, steps=steps)
        queries, keys = (F.normalize(moves(some)[:, :4], dim=1) for some in (train.queries, documents))
        scores = queries @ keys.T
        return float(scores.diagonal().mean() - scores.mean())

    assert margin(60) > margin(0) + 0.02


def test_the_page_is_made_of_the_records_alone(documents, tmp_path):
    folder = run_study(TOY, documents, tmp_path / "study").folder
    assert set(measures_of(read_study(folder))) == set(MEASURES)
    out = tmp_path / "docs" / "results.md"
    write_results([folder], out)
    text = out.read_text()
    stored = open_study(folder)
    assert sizes_report([stored], "figures") in text
    assert "| toy | Are 8 numbers above PCA? | ladder, NDCG@10 at 8, minus pca, NDCG@10 at 8 | yes |" in text
    assert "| 8 bits minus floats, at least -.002 |" in text
    assert (tmp_path / "docs" / "figures" / "study-1.svg").read_text().startswith("<svg")
    partial = stored._replace(cells={name: cell for name, cell in stored.cells.items() if name == "pca"})
    assert "1 of 2 cells are done" in sizes_report([partial], "figures")


def test_another_setting_is_another_cell(documents, tmp_path):
    plain = run_study(TOY, documents, tmp_path / "a")
    changed = replace(TOY, arms=(TOY.arms[0], arm("ladder", **FIT | {"steps": 3})))
    other = run_study(changed, documents, tmp_path / "b")
    assert [x.key == y.key for x, y in zip(plain.cells, other.cells, strict=True)] == [True, False]
