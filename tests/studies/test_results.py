"""Studies of docs/results.md: cells are measured once, the report is made of records alone, rules are as
written."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest
import torch

from querykey.adapter.settings import AdapterSettings
from querykey.errors import DataError
from querykey.evaluation.intervals import paired_difference
from querykey.features.features import Features, write_features
from querykey.io.records import Records, read
from querykey.io.study_folder import StoredStudy, cells_of, open_study, read_study
from querykey.reports.markdown.results import results_report, write_results
from querykey.reports.verdicts import answers, intervals, paired_columns, per_query, verdict
from querykey.runs.data import DataAt
from querykey.studies.catalogue.results_adapters import RESULTS_ADAPTERS
from querykey.studies.engine.data import StudyFeatures, StudyImages
from querykey.studies.engine.grid import Cell, compact, run_grid
from querykey.studies.engine.measure import measure_cell
from querykey.studies.engine.run import _arms_of, _cells, plan_study, run_study
from querykey.studies.engine.study import Arm, Figure, Question, Study

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "studies.py"
QUICK = {"dim": 3, "steps": 4, "batch_size": 16}


TRAIN_KEY = "8fb35df51873ace24505739f848fa8b5a612b20579b300befa5ef0d56d6ea407"
TEST_KEY = "d79421ae3c1d62f89c95dd3b4ef2b4c25a780fb7f7cc4f2cf92be75e2827ed7a"
"""Of the features of banking77, which are not in the repository."""


def projected(name, label):
    return Arm(name=name, label=label, kind="baseline", seeds=1, settings={"projection": name, "dim": 3})


ADAPTER = Arm(name="adapter", label="adapter", kind="adapter", settings=QUICK, seeds=2)
TOY = Study(
    name="toy",
    title="toy: four classes, 6 to 3",
    asks="Is it better?",
    source="this library",
    caveat="Role of the measured part: none.",
    measured="kNN, R@1",
    needs="features",
    arms=(
        projected("frozen", "frozen"),
        projected("pca", "PCA"),
        Arm(name="logistic_regression", label="logistic", kind="classifier", seeds=1, settings={"dim": 3}),
        ADAPTER,
        replace(
            ADAPTER, name="no_memory", settings=QUICK | {"memory": "in_batch"}, label="no memory", seeds=1
        ),
    ),
    references=("frozen", "pca"),
    questions=(
        Question(
            ask="Is it above?", ours=("adapter", "R@1"), theirs=("frozen", "R@1"), is_claim=True, min_seeds=1
        ),
        Question(ask="Is memory better?", ours=("adapter", "R@1"), theirs=("no_memory", "R@1"), min_seeds=1),
    ),
    figures=(Figure(kind="bars", title="toy", measures=("kNN", "R@1")),),
    knn=(20, 0.07),
    identity="fit",
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
def data(tmp_path):
    write_features(features(60, 0), tmp_path / "train")
    write_features(features(24, 1), tmp_path / "test")
    return StudyFeatures(train=DataAt(str(tmp_path / "train")), test=DataAt(str(tmp_path / "test")))


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


def cells(study, data):
    """All cells of a study, without measuring any."""
    described = json.loads(json.dumps(plan_study(study, data)))
    return {(cell.method, cell.seed): cell for cell in _cells(described, _arms_of(described), data)}


def test_the_key_of_a_cell_covers_settings_seed_features_and_protocol(data, tmp_path):
    def key(study=TOY, where=data, seed=0):
        return cells(study, where)["adapter", seed].key

    def adapter(**changes):
        return replace(TOY, arms=(replace(ADAPTER, **changes),), questions=())

    write_features(features(60, 7), tmp_path / "other")
    keys = [
        key(), key(seed=1), key(replace(TOY, knn=(5, 0.07))), key(adapter(settings=QUICK | {"dim": 2})),
        key(adapter(settings=QUICK | {"capacity": 64})), key(adapter(labels_a_class=1)),
        key(where=replace(data, train=DataAt(str(tmp_path / "other")))),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key(adapter()) == key()  # whatever else is in the table


def test_records_that_exist_are_read_under_the_same_keys():
    study = next(study for _, study in RESULTS_ADAPTERS if study.name == "banking77 256")
    described = read_study(ROOT / "results" / "adapters" / "banking77-256")

    class Keys(StudyFeatures):
        def keys(self):
            return {"train": TRAIN_KEY, "test": TEST_KEY}

    found = _cells(described, list(study.arms), Keys(train=DataAt("x")))
    records = read(ROOT / "results" / "adapters" / "banking77-256" / "records.jsonl")
    assert {(r["method"], r["seed"]): r["key"] for r in records} == {(c.method, c.seed): c.key for c in found}


STORED = sorted([*ROOT.glob("studies/*/study.json"), *ROOT.glob("results/pretraining/*/study.json")])


@pytest.mark.parametrize("plan", STORED, ids=lambda plan: plan.parent.name)
def test_every_stored_record_has_the_key_of_its_cell(plan, monkeypatch):
    """So no cell of the repository is measured again; arms on all cores were measured on two."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    described = read_study(plan.parent)
    found = _cells(described, _arms_of(described), StudyImages(train=DataAt("not opened")))
    keys = {(cell.method, cell.seed): cell.key for cell in found}
    records = [record for record in read(plan.parent / "records.jsonl") if record["kind"] == "cell"]
    assert records
    for record in records:
        assert keys[record["method"], record["seed"]] == record["key"]


def test_numbers_are_those_of_a_plain_count(data, tmp_path):
    found = measure_cell(cells(TOY, data)["frozen", 0])
    test = features(24, 1)
    unit = torch.nn.functional.normalize(test.vectors, dim=1)
    scores = (unit @ unit.T).fill_diagonal_(-2)
    right = (test.labels[scores.argmax(dim=1)] == test.labels).int().tolist()
    assert found["queries"]["R@1"] == right
    assert found["values"]["R@1"] == [sum(right), 24]


@pytest.fixture
def documents(tmp_path):
    rows, queries = features(30, 3, labels=False), features(5, 4, labels=False)
    pairs = torch.tensor([[q, 2 * q, 1 + q % 2] for q in range(5)])
    write_features(replace(rows, queries=queries, pairs=pairs), tmp_path / "d")
    at = DataAt(str(tmp_path / "d"))
    return StudyFeatures(train=at, test=at)


def test_documents_are_searched_by_their_queries(documents, tmp_path):
    figures = (Figure(kind="bars", title="toy", measures=("NDCG@10",)),)
    study = replace(TOY, arms=(TOY.arms[1], ADAPTER), questions=(), figures=figures)
    for cell in cells(study, documents).values():
        fields = measure_cell(cell)
        assert len(fields["queries"]["NDCG@10"]) == 5
    assert fields["settings"]["loss"]["kind"] == "score_distillation"  # queries and pairs are not fitted on


def test_pairs_and_labels_are_drawn_anew_for_each_seed(documents, data):
    _, some = documents.draw(seed=0, labels_a_class=None, pairs=3)
    _, others = documents.draw(seed=1, labels_a_class=None, pairs=3)
    assert len(some.pairs) == len(others.pairs) == 3
    assert not torch.equal(some.pairs, others.pairs)
    assert len(documents.draw(seed=0, labels_a_class=None, pairs=0)[1].pairs) == 5
    assert documents.draw(seed=0, labels_a_class=None, pairs=None)[1].pairs is None
    task, train = data.draw(seed=0, labels_a_class=2, pairs=None)
    assert sorted(task.train_labels.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert int((train.labels >= 0).sum()) == 8
    assert len(train.rows) == 60
    assert not torch.equal(train.labels, data.draw(seed=1, labels_a_class=2, pairs=None)[1].labels)


def test_documents_and_labelled_rows_do_not_go_together(documents, data):
    with pytest.raises(DataError, match="two of one kind"):
        replace(documents, test=data.test).task()


@pytest.fixture
def measured(data, tmp_path):
    return run_study(TOY, data, tmp_path / "study").folder


def test_the_report_is_made_of_the_records_alone_and_the_same_every_time(measured, tmp_path):
    out = tmp_path / "docs" / "results.md"
    write_results([measured, tmp_path / "not there"], out)
    first = out.read_bytes()
    assert results_report([open_study(measured)]).encode() == first
    text = first.decode()
    assert "## toy: four classes, 6 to 3" in text
    assert "| **adapter** |" in text
    assert "Role of the measured part: none." in text
    assert "-0.000 " not in text
    assert "-0.000," not in text
    assert "not measured yet" not in text


def test_the_report_of_the_repository_is_that_of_its_records(tmp_path):
    page = tmp_path / "results.md"
    subprocess.run(
        [sys.executable, str(SCRIPT), "results", "--report", "--page", str(page)], check=True, cwd=ROOT
    )
    assert page.read_bytes() == (ROOT / "docs" / "results.md").read_bytes()


def test_what_is_not_measured_yet_is_said(measured):
    records = [record for record in read(measured / "records.jsonl") if record["method"] != "adapter"]
    described = read_study(measured)
    text = results_report([StoredStudy("toy", described, cells_of(described, records))])
    assert "4 of 6 cells are done" in text
    assert text.count("not measured yet") == 2


def comparison_of(records, *kinds, **question):
    """A study of arms a and b with cells (arm, seed, numbers per query)."""
    arms = [
        {"name": name, "label": name, "kind": kind, "seeds": 3}
        for name, kind in zip("ab", kinds, strict=True)
    ]
    asked = {"ask": "a above b?", "ours": ["a", "R@1"], "theirs": ["b", "R@1"], "published": "", **question}
    cells = [
        {"kind": "cell", "key": f"{m}{s}", "method": m, "seed": s, "values": {}, "queries": {"R@1": v}}
        for m, s, v in records
    ]
    described = {"arms": arms, "asked": [asked]}
    return StoredStudy("t", described, cells_of(described, cells))


SIDES = ("a", "R@1"), ("b", "R@1")


def test_queries_are_averaged_over_seeds_before_they_are_compared():
    found = comparison_of(
        [("a", 0, [1, 0, 1]), ("a", 1, [0, 0, 1]), ("b", 0, [0, 0, 1])], "adapter", "baseline"
    )  # fmt: skip
    assert per_query(found.cells, *SIDES[0]) == [0.5, 0, 1]
    assert paired_columns(found, *SIDES) == ([0.5, 0, 1], [0, 0, 1], 2)


def test_two_trained_arms_are_compared_on_the_seeds_of_both():
    cells = [("a", 0, [1, 0]), ("a", 1, [0, 0]), ("b", 0, [0, 0])]
    assert paired_columns(comparison_of(cells, "adapter", "adapter"), *SIDES) == ([1, 0], [0, 0], 1)


def test_a_query_that_does_not_count_counts_in_no_difference():
    cells = [("a", 0, [None, 1]), ("a", 1, [None, 1]), ("b", 0, [1, 0])]
    (found,) = answers(comparison_of(cells, "adapter", "baseline"))
    assert (found.word, found.difference.queries, found.difference.mean) == ("yes", 1, 1.0)
    assert math.isnan(per_query(comparison_of(cells, "adapter", "baseline").cells, *SIDES[0])[0])


def test_one_seed_is_enough_only_where_the_question_says_so():
    cells = [("a", 0, [1, 1]), ("b", 0, [0, 0])]
    assert answers(comparison_of(cells, "adapter", "baseline"))[0].word == "can't tell"
    assert answers(comparison_of(cells, "adapter", "baseline", min_seeds=1))[0].word == "yes"


def test_numbers_of_different_queries_are_refused():
    found = comparison_of([("a", 0, [1]), ("b", 0, [1, 0])], "baseline", "baseline")
    with pytest.raises(DataError, match="different queries"):
        answers(found)


def test_records_of_version_0_1_are_read():
    record = {"kind": "cell", "key": "k", "method": "a", "seed": 0, "values": {"R@1": [1, None, 0.5]},
              "fit": {"seconds": 3.0}}  # fmt: skip
    cell = cells_of({"arms": [{"name": "a"}]}, [record])["a"][0]
    assert cell["queries"]["R@1"] == [1, None, 0.5]
    assert cell["values"]["R@1"] == [1.5, 2]
    assert cell["run"]["end"]["seconds"] == 3.0


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
    assert verdict(low, mean, high, rule) == answer


def test_numbers_are_kept_short():
    assert compact([1.0, 0.0, 2 / 3, math.nan]) == [1, 0, 0.6667, None]


@pytest.mark.parametrize("study", [study for _, study in RESULTS_ADAPTERS], ids=lambda study: study.name)
def test_a_study_asks_of_arms_and_metrics_that_it_has(study):
    names = [arm.name for arm in study.arms]
    assert len(set(names)) == len(names)
    assert set(study.references) <= set(names)
    for question in study.questions:
        assert {question.ours[0], question.theirs[0]} <= set(names)
        assert question.ours[1] == question.theirs[1]
        assert question.ours[1] in study.figures[0].measures
    for arm in study.arms:
        assert arm.kind != "adapter" or AdapterSettings.from_parameters(**arm.settings)


def test_data_that_are_not_there_are_one_message(tmp_path):
    for name, part in (("adapters/banking77-256", "banking77"), ("pretraining/minutes", "cifar10")):
        given = ["results", "--only", name, "--data", str(tmp_path), "--out", str(tmp_path / "r")]
        command = [sys.executable, str(SCRIPT), *given, "--page", str(tmp_path / "o.md")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 2
        assert str(tmp_path / part) in done.stderr.splitlines()[-1]
        assert "--data DIR" in done.stderr
    assert not (tmp_path / "o.md").exists()
