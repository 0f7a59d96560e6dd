"""Top-k of a look-up: each mode against plain loops, and its ties."""

import pytest
import torch

from querykey.errors import RangeError
from querykey.lookup import Lookup, PairRule, look_up
from querykey.lookup import top_k as select
from querykey.lookup.top_k import top_k


def by_hand(lookup, k, mode):
    lists = []
    for i, row in enumerate(lookup.scores.tolist()):
        positive = [j for j in range(len(row)) if lookup.positive[i, j]]
        negative = [j for j in range(len(row)) if lookup.negative[i, j]]
        ceiling = max((row[j] for j in positive), default=-2)
        pool = {
            "similar": sorted(positive + negative, key=lambda j: (-row[j], j)),
            "hard_negative": sorted(negative, key=lambda j: (-row[j], j)),
            "hard_positive": sorted(positive, key=lambda j: (row[j], j)),
            "semi_hard": sorted((j for j in negative if row[j] < ceiling), key=lambda j: (-row[j], j)),
        }[mode][:k]
        lists.append(pool + [-1] * (k - len(pool)))
    return lists


MODES = ["similar", "hard_negative", "hard_positive", "semi_hard"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("blocks", [(2, 3), (1024, 4096)])
def test_equals_the_sorted_list(mode, blocks, monkeypatch):
    monkeypatch.setattr(select, "QUERY_BLOCK", blocks[0])
    monkeypatch.setattr(select, "KEY_BLOCK", blocks[1])
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(41, 5, generator=generator)
    labels = torch.randint(-1, 4, (41,), generator=generator)
    ids = torch.arange(41)
    found = look_up(rows[:9], rows, query_ids=ids[:9], key_ids=ids, query_labels=labels[:9],
                    key_labels=labels, rule=PairRule(positive="label"), score="cosine")  # fmt: skip
    assert top_k(found, 4, mode).tolist() == by_hand(found, 4, mode)


@pytest.mark.parametrize("mode", MODES)
def test_ties_go_to_the_lower_index(mode):
    """Forty equal keys are more than the walk's slack: the list is still the first ones."""
    keys = torch.ones(40, 3)
    positive = torch.zeros(1, 40, dtype=torch.bool)
    positive[0, 20:] = True
    found = Lookup(
        torch.ones(1, 3), keys, Lookup.from_scores(torch.ones(1, 40), positive, ~positive).pairs, "cosine"
    )
    expected = {
        "similar": [0, 1, 2],
        "hard_negative": [0, 1, 2],
        "hard_positive": [20, 21, 22],
        "semi_hard": [-1] * 3,
    }
    assert top_k(found, 3, mode).tolist() == [expected[mode]]


def test_the_own_item_is_never_selected():
    rows, ids = torch.eye(4), torch.tensor([5, 5, 6, 7])
    found = look_up(rows, rows, query_ids=ids, key_ids=ids, rule=PairRule(), score="cosine")
    assert top_k(found, 3, "similar").tolist() == [[2, 3, -1], [2, 3, -1], [0, 1, 3], [0, 1, 2]]


def test_an_empty_dictionary_gives_nothing():
    found = look_up(
        torch.ones(2, 3),
        torch.empty(0, 3),
        query_ids=torch.arange(2),
        key_ids=torch.arange(0),
        rule=PairRule(),
    )
    assert top_k(found, 2, "similar").tolist() == [[-1, -1], [-1, -1]]


def test_k_below_one_is_refused():
    found = Lookup.from_scores(
        torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    )
    with pytest.raises(RangeError, match="k must be at least 1, got 0"):
        top_k(found, 0, "similar")
