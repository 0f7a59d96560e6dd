"""Near-equal rows are merged within the tolerance of a representative, and their number is said."""

import math

import pytest
import torch

from querykey import Adapter
from querykey.adapter.relevance import NEAR_EQUAL, same_items
from querykey.adapter.split import distinct_pairs

STEP = math.radians(0.3)


def chain(rows, step=STEP):
    """Rows on a circle, each `step` from the next."""
    angle = torch.arange(rows) * step
    return torch.stack([angle.cos(), angle.sin()], dim=1)


@pytest.mark.parametrize("rows", [1200, 1025, 2])
def test_documents_a_third_of_a_degree_apart_do_not_become_one(rows):
    documents, pairs, _ = distinct_pairs(chain(rows), chain(rows), None)
    # within 0.81 degrees of a representative: every third or fourth stands for itself
    assert rows / 4 <= len(documents) <= rows / 2 + 1
    assert len(pairs.queries) == len(documents)


def test_every_row_is_within_the_tolerance_of_what_represents_it():
    rows = torch.nn.functional.normalize(torch.randn(300, 3, generator=torch.Generator().manual_seed(0)))
    rows = torch.cat([rows, torch.nn.functional.normalize(rows + 0.005)])
    ids, first = same_items(rows)
    assert bool(((rows * rows[first[ids]]).sum(dim=1) >= NEAR_EQUAL - 1e-6).all())
    assert len(first) < 600


@pytest.mark.parametrize(
    ("queries", "documents", "note"),
    [
        (chain(20, 0.1), torch.cat([chain(19, 0.1), chain(1, 0.1)]), "merged 1 documents with another one"),
        (torch.cat([chain(18, 0.1), chain(2, 0.1)]), chain(20, 0.1), "merged 2 queries with another one"),
        (chain(20, 1e-4), chain(20, 1e-4), "merged 19 queries and 19 documents with another one"),
        (chain(20, 0.1), chain(20, 0.1), None),
    ],
)
def test_the_number_of_merged_rows_is_said(queries, documents, note):
    said = distinct_pairs(queries, documents, None)[2]
    assert said is None if note is None else said.startswith(note)


def test_the_report_of_a_fit_counts_them():
    rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([rows, rows[:3]])
    adapter = Adapter(dim=3, candidates="closed_form", batch_size=32).fit_pairs(rows, rows)
    assert adapter.report_["notes"][-1].startswith("merged 3 queries and 3 documents with another one")
