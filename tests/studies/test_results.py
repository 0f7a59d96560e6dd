"""The study of adapters: cells are done once, records alone make the report, rules are as written."""

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest
import torch

from querykey.errors import DataError, MissingPathError
from querykey.evaluation.intervals import Interval, paired_difference
from querykey.features.features import Features, write_features
from querykey.io.records import Records, read
from querykey.reports.comparison import comparisons, intervals, verdict
from querykey.reports.markdown.results import report, write_results
from querykey.studies.engine.grid import Cell, compact, run_grid, write_plan
from querykey.studies.results_grid.adapters import TASKS, DataSet, Method, Part, Question, StudyTask
from querykey.studies.results_grid.measure_adapters import cells_of, features_of, measure, plan_of

SCRIPT = Path(__file__).parents[2] / "scripts" / "results.py"
QUICK = {"steps": 4, "batch_size": 16}
TOY = StudyTask(
    name="toy",
    title="toy: four classes, 6 to 3",
    data=DataSet(name="toy", model="none", parts={"train": Part(path="t"), "test": Part(path="t")}),
    dim=3,
    role="toy",
    metrics=("kNN", "R@1"),
    methods=(
        Method(name="frozen", label="frozen", kind="baseline", seeds=1),
        Method(name="pca", label="PCA", kind="baseline", seeds=1),
        Method(name="logistic_regression", label="logistic", kind="classifier", seeds=1),
        Method(name="adapter", label="**adapter**", settings=QUICK),
        Method(name="no_memory", label="no memory", settings=QUICK | {"memory": "in_batch"}, seeds=1),
    ),
    references=("frozen", "pca"),
    questions=(
        Question(ask="Is it above?", metric="R@1", ours="adapter", theirs="frozen", claim=True),
        Question(ask="Is memory better?", metric="R@1", ours="adapter", theirs="no_memory"),
    ),
)


def features(rows, seed, labels=True):
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(rows) % 4
    vectors = torch.randn(rows, 6, generator=generator) + 1.5 * torch.eye(6)[classes]
    return Features(
        vectors=vectors, ids=[str(row) for row in range(rows)], labels=classes if labels else None,
        label_names=("a", "b", "c", "d") if labels else (), previews=[""] * rows, model_key="toy",
    )  # fmt: skip


@pytest.fixture
def stores(tmp_path):
    write_features(features(60, 0), tmp_path / "train")
    write_features(features(24, 1), tmp_path / "test")
    return {"train": str(tmp_path / "train"), "test": str(tmp_path / "test")}


def counted(measured):
    def count(cell):
        measured.append((cell.method, cell.seed))
        return {"values": {"R@1": [cell.seed]}}

    return count


def cell(method, seed=0, **identity):
    return Cell(task="t", method=method, seed=seed, identity={"method": method, **identity})


def test_a_cell_that_is_done_is_not_done_again(tmp_path):
    records, measured = Records(tmp_path / "r.jsonl"), []
    assert run_grid([cell("a"), cell("b")], records, counted(measured)) == 2
    wanted = [cell("a"), cell("b", 1), cell("b"), cell("a", dim=2)]
    assert run_grid(wanted, Records(records.path), counted(measured)) == 2
    assert measured == [("a", 0), ("b", 0), ("b", 1), ("a", 0)]


def test_a_killed_grid_goes_on_after_a_half_written_record(tmp_path):
    path, measured = tmp_path / "r.jsonl", []

    def killed(wanted):
        if wanted.method == "b":
            raise KeyboardInterrupt
        return counted(measured)(wanted)

    with pytest.raises(KeyboardInterrupt):
        run_grid([cell("a"), cell("b"), cell("c")], Records(path), killed)
    with path.open("ab") as file:
        file.write(b'{"kind": "cell", "key')
    run_grid([cell("a"), cell("b"), cell("c")], Records(path), counted(measured))
    assert measured == [("a", 0), ("b", 0), ("c", 0)]
    assert [record["method"] for record in read(path)] == ["a", "b", "c"]


def test_cells_of_one_key_are_measured_once_and_in_order(tmp_path):
    same = Cell(task="t", method="renamed", seed=0, identity={"method": "a"})
    measured = []
    run_grid([cell("b"), cell("a"), same], Records(tmp_path / "r.jsonl"), counted(measured))
    assert measured == [("b", 0), ("a", 0)]


def test_several_jobs_measure_every_cell_once(tmp_path):
    wanted = [Cell(task="t", method="a", seed=seed, identity={"values": [seed]}) for seed in range(5)]
    records = Records(tmp_path / "r.jsonl")
    assert run_grid(wanted, records, attrgetter("identity"), jobs=2) == 5
    assert sorted((r["seed"], r["values"]) for r in records.read()) == [(seed, [seed]) for seed in range(5)]


def test_the_key_of_a_cell_covers_settings_seed_features_and_protocol(stores, tmp_path):
    def key(task=TOY, seeds=1, where=stores):
        return cells_of(task, where, seeds=seeds)["adapter"][-1].key

    def method(**settings):
        return replace(TOY, methods=(Method(name="adapter", label="", settings=settings),))

    write_features(features(60, 7), tmp_path / "other")
    keys = [
        key(), key(seeds=2), key(replace(TOY, dim=2)), key(replace(TOY, knn=(5, 0.07))),
        key(method(**QUICK, capacity=64)), key(where=stores | {"train": str(tmp_path / "other")}),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key(method(**QUICK)) == key()  # whatever else is in the table


def test_only_what_is_trained_has_several_seeds(stores):
    cells = cells_of(TOY, stores, seeds=3)
    assert {name: [c.seed for c in own] for name, own in cells.items()} == {
        "frozen": [0], "pca": [0], "logistic_regression": [0], "adapter": [0, 1, 2], "no_memory": [0],
    }  # fmt: skip


def test_numbers_are_those_of_a_plain_count(stores):
    found = measure(cells_of(TOY, stores, seeds=1)["frozen"][0])["values"]["R@1"]
    test = features(24, 1)
    unit = torch.nn.functional.normalize(test.vectors, dim=1)
    scores = (unit @ unit.T).fill_diagonal_(-2)
    assert found == (test.labels[scores.argmax(dim=1)] == test.labels).int().tolist()


def test_documents_are_asked_by_their_queries(tmp_path):
    documents, queries = features(30, 3, labels=False), features(5, 4, labels=False)
    pairs = torch.tensor([[q, 2 * q, 1 + q % 2] for q in range(5)])
    write_features(replace(documents, queries=queries, pairs=pairs), tmp_path / "d")
    task = replace(TOY, metrics=("NDCG@10",), methods=(TOY.methods[1], TOY.methods[3]))
    stores = {part: str(tmp_path / "d") for part in ("train", "test")}
    for own in cells_of(task, stores, seeds=1).values():
        fields = measure(own[0])
        assert len(fields["values"]["NDCG@10"]) == 5
    assert fields["settings"]["loss"] == "score_distillation"  # queries and pairs are not fitted on


@pytest.fixture
def measured(stores, tmp_path):
    records, cells = Records(tmp_path / "r.jsonl"), cells_of(TOY, stores, seeds=2)
    write_plan(records, 0, TOY.name, plan_of(TOY, cells))
    run_grid([c for own in cells.values() for c in own], records, measure)
    return records


def test_the_report_is_made_of_the_records_alone_and_the_same_every_time(measured, tmp_path):
    out = tmp_path / "docs" / "results.md"
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(measured.path, folder / "records.jsonl")
    code = [str(SCRIPT), "report", "--records", str(folder), "--out", str(out)]
    subprocess.run([sys.executable, *code], check=True)
    first = out.read_bytes()
    write_results(measured.path, out)
    assert out.read_bytes() == first == report(measured.read()).encode()
    text = first.decode()
    assert "## toy: four classes, 6 to 3" in text
    assert "| **adapter** |" in text
    assert "-0.000 " not in text
    assert "-0.000," not in text
    assert "not measured yet" not in text


def test_what_is_not_measured_yet_is_said(measured):
    records = [record for record in measured.read() if record.get("method") != "adapter"]
    text = report(records)
    assert "4 of 6 cells are done" in text
    assert text.count("not measured yet") == 2


def test_the_last_plan_counts_even_if_it_was_there_before(measured, stores):
    once, twice = (plan_of(TOY, cells_of(TOY, stores, seeds=seeds)) for seeds in (1, 2))
    for plan in (once, twice, twice, once):
        write_plan(measured, 0, TOY.name, plan)
    assert [r["revision"] for r in measured.read() if r["kind"] == "plan"] == [1, 2, 3, 4]
    assert comparisons(measured.read())[0].planned == 5


def comparison_of(cells, *kinds):
    """A comparison of methods a, b, ... with cells (method, seed, values)."""
    records = [
        {"kind": "cell", "key": f"{m}{s}", "method": m, "seed": s, "seconds": 10.0 + s, "values": {"R@1": v}}
        for m, s, v in cells
    ]
    methods = [
        {"name": name, "label": name, "kind": kind, "keys": [f"{m}{s}" for m, s, _ in cells if m == name]}
        for name, kind in zip("ab", kinds, strict=True)
    ]
    return comparisons([{"kind": "plan", "task": "t", "place": 0, "methods": methods}, *records])[0]


def test_queries_are_averaged_over_seeds_before_they_are_compared():
    found = comparison_of(
        [("a", 0, [1, 0, 1]), ("a", 1, [0, 0, 1]), ("b", 0, [0, 0, 1])], "adapter", "baseline"
    )  # fmt: skip
    assert found.values("a", "R@1") == [0.5, 0, 1]
    assert found.apart("a", "b", "R@1") == [0.5, 0, 0]
    assert found.spread("a", "R@1") == (1 / 3, 2 / 3)
    assert found.spread("b", "R@1") is None
    assert found.seconds("a") == 11.0


def test_two_trained_methods_are_compared_on_the_seeds_of_both():
    cells = [("a", 0, [1, 0]), ("a", 1, [0, 0]), ("b", 0, [0, 0])]
    assert comparison_of(cells, "adapter", "adapter").apart("a", "b", "R@1") == [1, 0]


def test_a_query_that_does_not_count_counts_in_no_difference():
    found = comparison_of([("a", 0, [None, 1]), ("b", 0, [1, 0])], "baseline", "baseline")
    apart = found.apart("a", "b", "R@1")
    assert math.isnan(apart[0])
    assert apart[1] == 1


def test_numbers_of_different_queries_are_refused():
    found = comparison_of([("a", 0, [1]), ("b", 0, [1, 0])], "baseline", "baseline")
    with pytest.raises(DataError, match="different queries"):
        found.apart("a", "b", "R@1")


def test_intervals_are_those_of_the_evaluation():
    ours, theirs = [1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]
    found = intervals([None, [a - b for a, b in zip(ours, theirs, strict=True)]])
    assert found == [None, paired_difference(torch.tensor(ours), torch.tensor(theirs))]


@pytest.mark.parametrize(
    ("rule", "low", "mean", "high", "answer"),
    [
        ("above", 0.01, 0.02, 0.03, "yes"),
        ("above", 0.0, 0.02, 0.03, "can't tell"),
        ("above", -0.03, -0.02, -0.01, "no"),
        ("at or above", -0.01, 0.0, 0.01, "yes"),
        ("at or above", -0.02, -0.01, 0.01, "can't tell"),
        ("at or above", -0.03, -0.02, -0.01, "no"),
        ("not below", -0.02, -0.01, 0.01, "yes"),
        ("not below", -0.03, -0.02, -0.01, "no"),
    ],
)
def test_a_verdict_follows_its_rule(rule, low, mean, high, answer):
    assert verdict(rule, Interval(mean, low, high)) == answer


def test_numbers_are_kept_short():
    assert compact([1.0, 0.0, 2 / 3, math.nan]) == [1, 0, 0.6667, None]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_task_asks_of_methods_and_metrics_that_it_has(task):
    names = [method.name for method in task.methods]
    assert len(set(names)) == len(names)
    assert set(task.references) <= set(names)
    for question in task.questions:
        assert {question.ours, question.theirs} <= set(names)
        assert question.metric in task.metrics


def test_data_that_are_not_there_are_one_message(tmp_path):
    with pytest.raises(MissingPathError, match="--data DIR"):
        features_of(TOY.data, tmp_path, tmp_path, lambda _: None)
    given = [str(SCRIPT), "--data", str(tmp_path / "nowhere"), "--records", str(tmp_path / "r")]
    for part in ("adapters", "pretraining"):
        command = [sys.executable, *given, part, "--out", str(tmp_path / "o.md")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "o.md").exists()
