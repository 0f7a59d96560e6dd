"""Memory by the product of two worst sides: one query with very many documents among others with one."""

import pytest
import torch

from querykey.adapter import validation
from querykey.adapter.relevance import Relevance
from querykey.adapter.validation import PairScorer, Ragged


@pytest.mark.parametrize("metric", ["score", "ranks"])
def test_a_query_with_very_many_documents_changes_no_bit_of_a_score(metric, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(340, 4, generator=generator), dim=1)
    queries, documents = rows[:40], rows[40:]
    of = torch.cat([torch.arange(40), torch.full((200,), 3)])
    relevance = Relevance(of, torch.cat([torch.arange(40), torch.arange(60, 260)]), queries=40)
    scorer = PairScorer(queries, documents, relevance, moves_documents=True)
    monkeypatch.setattr(validation, "ELEMENTS", 300 * 7)
    monkeypatch.setattr(validation, "FEWEST", 1)
    whole = scorer.prepare(torch.arange(40))
    monkeypatch.setattr(validation, "DENSE", 1000)
    ragged = scorer.prepare(torch.arange(40))
    assert isinstance(whole.relevant, torch.Tensor)
    assert isinstance(ragged.relevant, Ragged)
    assert ragged.relevant[2:5].equal(whole.relevant[2:5])
    found, wanted = (getattr(scorer, metric)(lambda x: x, held_out) for held_out in (ragged, whole))
    found, wanted = ({"": one} if metric == "score" else one for one in (found, wanted))
    assert all(found[name].equal(wanted[name]) for name in wanted)
