"""What a look-up and a dictionary show of themselves, against plain loops, and the words for what is off."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from querykey.diagnostics import dictionary as dictionary_metrics
from querykey.diagnostics.dictionary import (
    PairsWithIds,
    dictionary_health,
    dictionary_warnings,
    item_labels,
    lookup_health,
)
from querykey.dictionaries.bank import MemoryBank
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.dictionaries.queue import KeyQueue
from querykey.errors import RangeError, ShapeError
from querykey.lookup import Lookup, PairRule, look_up
from querykey.lookup.lookup import look_up_own_key
from querykey.lookup.two_view_pairs import TwoViewPairs, look_up_views


def by_loops(lookup, temperature, query_ids, key_ids, query_labels, key_labels):
    """Every figure pair by pair."""
    rows = []
    copies = known = own_class = 0
    for i in range(len(lookup)):
        scores = [float(lookup.queries[i].double() @ key.double()) for key in lookup.keys]
        rows.append((
            [s for s, is_one in zip(scores, lookup.positive[i], strict=True) if is_one],
            [s for s, is_one in zip(scores, lookup.negative[i], strict=True) if is_one],
        ))  # fmt: skip
        for k in range(len(lookup.keys)):
            if lookup.negative[i, k]:
                copies += int(query_ids[i] == key_ids[k] != -1)
                if query_labels[i] != -1 and key_labels[k] != -1:
                    known += 1
                    own_class += int(query_labels[i] == key_labels[k])
    asked = [(p, n) for p, n in rows if p and n]
    positives, negatives = [s for p, _ in rows for s in p], [s for _, n in rows for s in n]
    mean = {name: sum(all_) / len(all_) for name, all_ in (("p", positives), ("n", negatives)) if all_}
    seen = {"queries": len(rows), "candidates": (len(positives) + len(negatives)) / len(rows)}
    seen["own_copies"] = copies / len(rows)
    if asked:
        seen["pretext"] = sum(max(p) > max(n) for p, n in asked) / len(asked)
        seen["chance"] = sum(len(p) / (len(p) + len(n)) for p, n in asked) / len(asked)
    if positives:
        seen["positive_score"] = mean["p"]
    if negatives:
        seen["negative_score"] = mean["n"]
        seen["hardest_negative"] = sum(max(n) for _, n in rows if n) / sum(1 for _, n in rows if n)
        seen["false_negatives_id"] = copies / len(negatives)
    if positives and negatives:
        seen["gap"] = (mean["p"] - mean["n"]) / temperature
    if known:
        seen["false_negatives_label"] = own_class / known
    return seen


def unit(rows, dim, seed):
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@settings(max_examples=40, deadline=None)
@given(
    query_ids=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    key_ids=st.lists(st.integers(-1, 4), min_size=1, max_size=9),
    same_id=st.sampled_from(["masked", "positive", "negative"]),
    positive=st.sampled_from(["id", "label"]),
    block=st.sampled_from([1, 3, 100]),
    seed=st.integers(0, 5),
)
def test_every_figure_is_that_of_plain_loops_whole_or_in_blocks(
    query_ids, key_ids, same_id, positive, block, seed
):
    draw = torch.Generator().manual_seed(seed)
    classes = torch.randint(-1, 3, (5,), generator=draw)
    ids = torch.tensor(query_ids), torch.tensor(key_ids)
    labels = item_labels(ids[0], classes), item_labels(ids[1], classes)
    lookup = look_up(
        unit(len(ids[0]), 4, seed), unit(len(ids[1]), 4, seed + 9), query_ids=ids[0], key_ids=ids[1],
        query_labels=labels[0], key_labels=labels[1], rule=PairRule(positive=positive, same_id=same_id),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dictionary_metrics, "ELEMENTS", block * len(lookup))
        found = lookup_health(lookup, temperature=0.2, query_labels=labels[0], key_labels=labels[1])
    assert found == pytest.approx(by_loops(lookup, 0.2, *ids, *labels), abs=1e-5)
    assert "scores" not in lookup.__dict__ or block == 100


def test_no_block_is_larger_than_it_may_be(monkeypatch):
    monkeypatch.setattr(dictionary_metrics, "ELEMENTS", 12)
    shown = []
    ids = torch.arange(5), torch.arange(3)
    lookup = look_up(unit(5, 4, 0), unit(3, 4, 1), query_ids=ids[0], key_ids=ids[1], rule=PairRule())
    whole = Lookup.blocks
    monkeypatch.setattr(Lookup, "blocks", lambda self, size: shown.append(size) or whole(self, size))
    lookup_health(lookup, temperature=1.0)
    assert shown == [2]
    assert not {"scores", "masks"} & lookup.__dict__.keys()


def test_a_tie_is_not_solved():
    mask = torch.tensor([[True, False]])
    assert lookup_health(Lookup.from_scores(torch.zeros(1, 2), mask, ~mask), temperature=1.0)["pretext"] == 0


def test_a_query_without_positives_or_negatives_is_not_counted():
    positive = torch.tensor([[True, False], [False, False], [True, False]])
    negative = torch.tensor([[False, True], [True, True], [False, False]])
    scores = torch.tensor([[0.9, 0.1], [0.4, 0.5], [0.0, 0.7]])
    seen = lookup_health(Lookup.from_scores(scores, positive, negative), temperature=0.5)
    assert (seen["pretext"], seen["chance"], seen["candidates"]) == (1.0, 0.5, pytest.approx(5 / 3))
    assert seen["hardest_negative"] == pytest.approx((0.1 + 0.5) / 2)
    assert "false_negatives_id" not in seen


def test_an_empty_dictionary_leaves_out_what_needs_negatives():
    lookup = look_up_own_key(
        unit(2, 3, 0), unit(2, 3, 1), ids=torch.arange(2), stored_vectors=torch.zeros(0, 3),
        stored_ids=torch.zeros(0, dtype=torch.int64),
    )  # fmt: skip
    seen = lookup_health(lookup, temperature=0.1)
    assert seen["candidates"] == 1
    assert not {"pretext", "chance", "gap", "negative_score", "false_negatives_id"} & seen.keys()
    assert "positive_score" in seen
    assert dictionary_warnings(seen) == {}


@pytest.mark.parametrize(("same_id", "share"), [("negative", 1 / 8), ("masked", 0.0), ("positive", 0.0)])
def test_own_keys_in_the_queue_are_counted_and_random_rows_are_nobodys(same_id, share):
    ids, held = torch.tensor([4, 7]), torch.tensor([7, -1, -1, 9])
    lookup = look_up_own_key(
        unit(2, 3, 0), unit(2, 3, 1), ids=ids, stored_vectors=unit(4, 3, 2), stored_ids=held, same_id=same_id
    )
    seen = lookup_health(
        lookup, temperature=0.1, query_ids=ids, key_ids=torch.cat([ids, held]),
        query_labels=item_labels(ids, torch.arange(10) // 5),
        key_labels=item_labels(torch.cat([ids, held]), torch.arange(10) // 5),
    )  # fmt: skip
    assert seen["false_negatives_id"] == share
    assert seen["own_copies"] == (0.5 if share else 0.0)
    assert seen["false_negatives_label"] == pytest.approx(2 / 4 if share else 1 / 3)


def test_pairs_with_ids_are_measured():
    ids = torch.tensor([5, 6, 6])
    pairs = look_up_views(unit(3, 2, 0), unit(3, 2, 1), ids=ids).pairs
    assert isinstance(pairs, PairsWithIds)
    assert pairs.key_ids.tolist() == [5, 6, 6, 5, 6, 6]
    assert TwoViewPairs(ids=ids).rows(2, 5).rows(1, 9).query_ids.tolist() == [5, 6]
    own = look_up_own_key(
        unit(3, 2, 0), unit(3, 2, 1), ids=ids, stored_vectors=unit(2, 2, 2), stored_ids=torch.tensor([6, -1]),
        same_id="negative",
    )  # fmt: skip
    assert isinstance(own.pairs, PairsWithIds)
    assert own.pairs.key_ids.tolist() == [5, 6, 6, 6, -1]
    assert own.rows(1, 3).pairs.query_ids.tolist() == [6, 6]
    assert lookup_health(own, temperature=1.0)["false_negatives_id"] == 2 / 6


def test_what_does_not_fit_is_refused():
    lookup = look_up_views(unit(2, 3, 0), unit(2, 3, 1))
    with pytest.raises(RangeError, match="temperature must be > 0"):
        lookup_health(lookup, temperature=0.0)
    with pytest.raises(ShapeError, match="ids number 2 and 4 for 4 queries and 4 keys"):
        lookup_health(lookup, temperature=1.0, query_ids=torch.arange(2), key_ids=torch.arange(4))
    with pytest.raises(ShapeError, match="labels of the keys are missing"):
        lookup_health(lookup, temperature=1.0, query_labels=torch.arange(4))
    with pytest.raises(RangeError, match="capacity"):
        dictionary_health(CrossBatchMemory(capacity=2, dim=1), 0)


def fed(dictionary, batches):
    for ids in batches:
        put = dictionary.write if isinstance(dictionary, MemoryBank) else dictionary.enqueue
        put(torch.ones(len(ids), 2), torch.tensor(ids))
    return dictionary


@pytest.mark.parametrize(
    ("dictionary", "expected"),
    [
        (KeyQueue(capacity=8, dim=2), (5 / 8, 0.4, 1.0)),
        (KeyQueue(capacity=8, dim=2, start="random"), (5 / 8, 0.4, 1.0)),
        (KeyQueue(capacity=4, dim=2), (1.0, 0.25, 1.0)),
        (MemoryBank(items=10, dim=2), (4 / 10, 0.25, 1.0)),
    ],
)
def test_fill_and_age_are_those_of_rows_that_a_step_wrote(dictionary, expected):
    fed(dictionary, [[0, 1], [1, 2, 3]])
    capacity = len(dictionary.ids)
    assert tuple(dictionary_health(dictionary, capacity).values()) == pytest.approx(expected)


def test_an_unwritten_dictionary_is_empty_with_age_0():
    for dictionary in (KeyQueue(capacity=3, dim=2, start="random"), MemoryBank(items=3, dim=2)):
        assert dictionary_health(dictionary, 3) == {"fill": 0.0, "age_mean": 0.0, "age_max": 0.0}


WELL = {
    "queries": 256.0, "candidates": 4097.0, "pretext": 0.6, "chance": 1 / 4097, "gap": 3.0,
    "negative_score": 0.0, "false_negatives_id": 0.0, "own_copies": 0.0, "false_negatives_label": 0.1,
    "fill": 1.0, "age_max": 15.0, "knn": 0.5,
}  # fmt: skip
START = {"knn": 0.36}


def test_a_healthy_run_has_no_warning():
    assert dictionary_warnings(WELL, drift={1: 0.0, 16: 0.4}, half_life=69.0, start=START, is_over=True) == {}
    assert dictionary_warnings({}) == {}


@pytest.mark.parametrize(
    ("off", "said"),
    [
        ({"age_max": 70.0}, "the oldest keys are 70 steps old and the half-life of their encoder is 69"),
        ({"fill": 0.4}, "the dictionary was only 40% full when the run ended"),
        ({"own_copies": 0.11, "false_negatives_id": 1e-5}, "a query has 0.11 old keys of its own item"),
        ({"false_negatives_id": 0.002}, "(0.20% of them)"),
        ({"false_negatives_label": 0.4}, "40% of the negatives are of the query's own class"),
        ({"gap": 0.05}, "positives score 0.05 logits above negatives"),
        ({"gap": -1.0}, "positives score -1.00 logits above negatives"),
        ({"pretext": 1 / 256}, "the pretext task is at chance: 0.39% of the queries find their key, 0.02%"),
        ({"pretext": 0.995, "knn": 0.38}, "solved (99.5% of the queries) while kNN is 0.380, and 0.360"),
    ],
)
def test_each_problem_has_one_warning_with_its_number(off, said):
    (word,) = dictionary_warnings(WELL | off, half_life=69.0, start=START, is_over=True).values()
    assert said in word
    assert ": " in word
    assert not word.endswith(".")


def test_a_momentum_is_named_whose_half_life_is_the_oldest_keys_age():
    (word,) = dictionary_warnings(WELL | {"age_max": 256.0}, half_life=69.0).values()
    momentum = float(word.rpartition(" ")[2])
    assert math.log(0.5) / math.log(momentum) == pytest.approx(256, rel=0.05)
    assert dictionary_warnings(WELL | {"age_max": 256.0}) == {}


def test_drift_is_judged_by_how_far_items_are_apart_and_the_youngest_age_is_named():
    (word,) = dictionary_warnings(WELL, drift={64: 1.5, 1: 0.1, 16: 0.6}).values()
    assert word.startswith(
        "rows stored 16 steps ago have drifted by 0.60, and different items are 2.00 apart"
    )
    close = WELL | {"negative_score": 0.9}
    assert dictionary_warnings(close, drift={1: 0.04}) == {}
    assert len(dictionary_warnings(close, drift={1: 0.06})) == 1


def test_a_solved_pretext_task_is_no_warning_if_knn_rises_or_is_unknown():
    solved = WELL | {"pretext": 1.0}
    assert dictionary_warnings(solved, start=START) == {}
    assert dictionary_warnings({"pretext": 1.0, "chance": 0.1}, start=START) == {}
    assert dictionary_warnings(solved) == {}


def test_few_queries_are_not_called_chance_too_soon():
    few = {"queries": 32.0, "pretext": 3 / 32, "chance": 1 / 65, "gap": 1.0}
    assert dictionary_warnings(few) == {}
    assert len(dictionary_warnings(few | {"pretext": 1 / 32})) == 1
    assert dictionary_warnings({"queries": 2.0, "pretext": 0.0, "chance": 0.5, "gap": 1.0}) == {}
