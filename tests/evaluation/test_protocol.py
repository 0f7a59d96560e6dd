"""One evaluation of all methods: its queries, what is left out, and what the result records."""

import json

import pytest
import torch

from querykey.errors import DataError, RangeError, ShapeError
from querykey.evaluation.intervals import paired_difference
from querykey.evaluation.protocol import Examination, evaluate, evaluate_embeddings
from querykey.evaluation.table import tabulate
from querykey.evaluation.task import Embedded, Protocol, Task, embed_task


def blobs(count, seed, width=6, classes=5):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    middle = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    return middle[labels] + 0.7 * torch.randn(count, width, generator=generator), labels


def label_task():
    (test, test_labels), (train, train_labels) = blobs(60, 0), blobs(90, 1)
    return Task(test=test, test_labels=test_labels, train=train, train_labels=train_labels)


def pair_task():
    documents, queries = blobs(40, 0)[0], blobs(12, 1)[0]
    return Task(
        test=documents,
        queries=queries,
        pairs=torch.tensor([[i, (7 * i + j) % 40, j + 1] for i in range(11) for j in range(3)]),
    )


def worse(rows):
    return rows[:, :2]


def test_labelled_data_are_evaluated_on_classes_and_neighbours():
    task = label_task()
    table = evaluate(task, {"ours": embed_task(task, worse)}, dim=3)
    assert table.metrics == ("R@1", "R@5", "R@10", "MAP@R", "R-prec", "kNN", "overlap@10")
    assert list(table.cells) == [
        "frozen", "truncated", "pca", "pca_uncentred", "whitened_pca", "random_projection", "lda", "ours",
        "logistic_regression",
    ]  # fmt: skip
    assert list(table.cells["logistic_regression"]) == ["kNN"]
    assert table.cells["frozen"]["overlap@10"].value.mean == 1.0
    assert table.cells["frozen"]["R@1"].queries == 60


def test_each_cell_is_the_mean_and_the_paired_difference_of_its_queries():
    task = label_task()
    table = evaluate(task, {"ours": embed_task(task, worse)}, dim=3)
    ours, frozen = (table.per_query[name]["R@1"] for name in ("ours", "frozen"))
    cell = table.cells["ours"]["R@1"]
    assert cell.value.mean == pytest.approx(float(ours.mean()))
    wanted = paired_difference(ours, frozen)
    assert cell.against["frozen"].mean == pytest.approx(wanted.mean)
    assert cell.against["frozen"].low == pytest.approx(wanted.low)
    assert set(cell.against) == {"frozen", "pca"}
    assert set(table.cells["ours"]["overlap@10"].against) == {"pca"}
    assert set(table.cells["ours"]["kNN"].against) == {"frozen", "pca", "logistic_regression"}


def test_pairs_are_evaluated_on_documents():
    task = pair_task()
    table = evaluate(task, {"ours": embed_task(task, worse)}, dim=3)
    assert table.metrics == ("NDCG@10", "recall@10", "MRR@10", "overlap@10")
    assert table.cells["ours"]["NDCG@10"].queries == 11
    assert table.protocol["nothing_to_find"] == {"NDCG@10": 1, "recall@10": 1, "MRR@10": 1}
    assert table.protocol["baselines_fitted_on"] == "the evaluated items"


def test_an_adapter_of_queries_alone_leaves_documents_as_they_are():
    task = pair_task()
    given = embed_task(task, lambda rows: rows, lambda rows: -rows)
    assert torch.equal(given.test, task.test)
    assert torch.equal(given.queries, -task.queries)


def test_unlabelled_data_are_evaluated_on_neighbours_only():
    table = evaluate(Task(test=blobs(30, 0)[0]), {}, dim=3)
    assert table.metrics == ("overlap@10",)
    assert any("no labels and no pairs" in line for line in table.protocol["left_out"])


def test_unlabelled_everywhere_is_without_labels():
    assert Task(test=torch.eye(3), test_labels=torch.full((3,), -1)).kind == "neighbours"


def test_classes_unseen_in_training_leave_the_vote_out():
    (test, labels), (train, train_labels) = blobs(30, 0), blobs(40, 1)
    task = Task(test=test, test_labels=labels, train=train, train_labels=train_labels + 100)
    table = evaluate(task, {}, dim=3)
    assert "kNN" not in table.metrics
    assert "logistic_regression" not in table.cells
    assert any("no training items of the test classes" in line for line in table.protocol["left_out"])


def test_some_classes_unseen_in_training_are_wrong_and_counted():
    (test, labels), (train, train_labels) = blobs(30, 0), blobs(40, 1)
    task = Task(
        test=test,
        test_labels=labels,
        train=train,
        train_labels=torch.where(train_labels == 0, -1, train_labels),
    )
    table = evaluate(task, {}, dim=3)
    assert any("6 test items" in line for line in table.protocol["left_out"])
    for name in ("frozen", "logistic_regression"):
        assert table.per_query[name]["kNN"][labels == 0].sum() == 0
    assert table.protocol["rows"] == {"test": 30, "train": 40}


def test_unlabelled_test_items_are_counted():
    test, labels = blobs(30, 0)
    labels[:4] = -1
    table = evaluate(Task(test=test, test_labels=labels), {}, dim=3)
    assert table.cells["frozen"]["R@1"].queries == 26
    assert any("4 unlabelled" in line for line in table.protocol["left_out"])


@pytest.mark.parametrize("make", [label_task, pair_task])
def test_more_queries_than_wanted_are_drawn_the_same_for_all(make):
    task, protocol = make(), Protocol(max_queries=7)
    table = evaluate(task, {}, dim=3, protocol=protocol)
    assert table.protocol["asked"] == 7
    assert any(": 7 are drawn" in line for line in table.protocol["left_out"])
    whole = evaluate(task, {}, dim=3)
    order = torch.randperm(
        len(task.queries) if task.queries is not None else 60, generator=torch.Generator().manual_seed(0)
    )
    asked = order[:7].sort().values
    for name, row in table.per_query.items():
        for metric, values in row.items():
            torch.testing.assert_close(values, whole.per_query[name][metric][asked], equal_nan=True)


def test_a_drawn_part_of_frozen_neighbours_is_still_itself():
    table = evaluate(Task(test=blobs(40, 0)[0]), {}, dim=3, protocol=Protocol(max_queries=9))
    assert table.per_query["frozen"]["overlap@10"].tolist() == [1.0] * 9


def test_an_item_is_not_its_own_neighbour():
    run = Examination(Task(test=blobs(30, 0)[0]), Protocol(max_queries=9))
    assert run.frozen_neighbours.shape == (9, 10)
    assert not (run.frozen_neighbours == run.query_rows[:, None]).any()


def test_copies_of_an_item_are_not_its_neighbours():
    test, labels = blobs(30, 0)
    twice = Task(
        test=torch.cat([test, test]),
        test_labels=torch.cat([labels, labels]),
        test_ids=torch.arange(30).repeat(2),
    )
    once = evaluate(Task(test=test, test_labels=labels), {}, dim=3).cells["frozen"]["R@1"].value.mean
    assert evaluate(twice, {}, dim=3).cells["frozen"]["R@1"].value.mean == pytest.approx(once)


def test_trap_2_40_constants_that_change_numbers_are_in_the_result():
    """kNN numbers stopped reproducing when a default temperature changed: ours are pinned and written."""
    written = evaluate(label_task(), {}, dim=3).as_dict()["protocol"]
    assert (written["knn_k"], written["knn_temperature"]) == (10, 0.1)
    assert written["seed"] == 0
    assert "2000 samples" in written["interval"]
    assert set(written["versions"]) == {"python", "querykey", "torch", "numpy", "scikit-learn"}
    assert written["logistic_regression"]["strength"] > 0
    other = evaluate(label_task(), {}, dim=3, protocol=Protocol(knn_k=3, knn_temperature=0.5)).protocol
    assert (other["knn_k"], other["knn_temperature"]) == (3, 0.5)


def test_trap_2_41_the_result_says_what_was_looked_up_among_what():
    """Online and offline numbers were confused for one another: ours say where they come from."""
    written = evaluate(label_task(), {}, dim=3).protocol
    assert written["kind"] == "labels"
    assert written["lookup"] == "each test item among the other test items; kNN: among the training items"
    assert written["baselines_fitted_on"] == "the training items"
    assert evaluate(pair_task(), {}, dim=3).protocol["lookup"] == "each query among the documents"


def test_k_of_the_vote_is_the_one_used_not_the_one_wanted():
    (test, labels), (train, train_labels) = blobs(30, 0), blobs(6, 1)
    task = Task(test=test, test_labels=labels, train=train, train_labels=train_labels)
    assert evaluate(task, {}, dim=3).protocol["knn_k"] == 6


def test_a_classifier_that_would_take_too_long_is_left_out_with_its_reason():
    table = evaluate(label_task(), {}, dim=3, protocol=Protocol(most_work=10.0))
    assert "logistic_regression" not in table.cells
    assert table.protocol["logistic_regression"].startswith("left out: rows x width x classes is 2.7e+03")


def test_the_same_seed_gives_the_same_json():
    once, again = (json.dumps(evaluate(label_task(), {}, dim=3).as_dict(per_query=True)) for _ in range(2))
    assert once == again


@pytest.mark.parametrize("make", [label_task, pair_task])
def test_json_has_no_nan_and_every_number(make):
    table = evaluate(make(), {}, dim=3)
    back = json.loads(json.dumps(table.as_dict(per_query=True), allow_nan=False))
    for name, row in table.cells.items():
        for metric, cell in row.items():
            assert back["methods"][name]["metrics"][metric]["mean"] == cell.value.mean
            assert len(back["per_query"][name][metric]) == table.protocol["asked"]
    assert "excludes_zero" in next(iter(back["methods"]["pca"]["metrics"].values()))["against"]["frozen"]
    assert {"dim", "uniformity", "effective_rank", "alignment"} == set(back["methods"]["pca"]["figures"])
    assert "per_query" not in table.as_dict()


def test_methods_are_made_one_after_the_other():
    """Eight methods of a million rows don't fit beside each other."""
    task, made = Task(test=blobs(30, 0)[0]), []

    def maker(name):
        def make():
            made.append(name)
            return embed_task(task, worse)

        return make

    evaluate_embeddings(task, {"a": maker("a"), "b": maker("b")})
    assert made == ["a", "b"]


def test_overview_and_detail_fit_80_columns():
    task = label_task()
    table = evaluate(task, {"adapter": embed_task(task, worse)}, dim=3)
    for lines in (table.overview(), table.detail("R@1")):
        widths = [max(len(row[i]) for row in lines) for i in range(len(lines[0]))]
        assert {len(row) for row in lines} == {len(lines[0])}
        assert sum(widths) + len(widths) - 1 <= 80


def test_overview_marks_what_is_more_than_the_interval_and_keeps_signs_in_place():
    low, high = torch.zeros(50), torch.ones(50)
    odd = (torch.arange(50) % 2).float()
    numbers = {"frozen": {"m": low}, "pca": {"m": high}, "ours": {"m": odd}, "twin": {"m": high}}
    table = tabulate(numbers, figures={"ours": {"dim": 8.0}}, references=("frozen", "pca"), protocol={})
    assert table.overview() == [
        ("", "dim", "m"),
        ("frozen", "", ".000 -"),
        ("pca", "", "1.00+"),
        ("ours", "8", ".500+-"),
        ("twin", "", "1.00+="),
    ]
    assert table.detail("m")[4] == (
        "twin", "1.00", "[1.00,1.00]", "+1.00 [+1.00,+1.00]", "+.000 [+.000,+.000]"
    )  # fmt: skip


def test_a_metric_that_no_query_has_is_left_out():
    numbers = {"frozen": {"m": torch.tensor([torch.nan]), "n": torch.ones(1)}}
    table = tabulate(numbers, figures={}, references=("frozen",), protocol={})
    assert table.metrics == ("n",)
    with pytest.raises(DataError, match="no metric 'm' in this table; it has n"):
        table.detail("m")


def test_bad_input_is_one_message():
    task = label_task()
    with pytest.raises(RangeError, match="width 6, got 7"):
        evaluate(task, {}, dim=7)
    with pytest.raises(DataError, match="can't be named 'pca'"):
        evaluate(task, {"pca": embed_task(task, worse)}, dim=3)
    with pytest.raises(ShapeError, match="ours has 59 test rows, the task 60"):
        evaluate_embeddings(task, {"ours": Embedded(test=task.test[:59])})
    with pytest.raises(ShapeError, match="ours has no queries, but the task has 12"):
        evaluate_embeddings(pair_task(), {"ours": Embedded(test=pair_task().test)})
    with pytest.raises(DataError, match="ours has NaN or infinite numbers in its test rows"):
        evaluate_embeddings(task, {"ours": Embedded(test=torch.full((60, 2), torch.nan))})
    with pytest.raises(DataError, match="pairs and queries come together"):
        Task(test=torch.eye(2), pairs=torch.tensor([[0, 0, 1]]))
    with pytest.raises(ShapeError, match="test_labels has 3 entries for 2 rows"):
        Task(test=torch.eye(2), test_labels=torch.tensor([0, 1, 2]))
    with pytest.raises(ShapeError, match="train_labels has 1 entries for no rows"):
        Task(test=torch.eye(2), train_labels=torch.tensor([0]))
