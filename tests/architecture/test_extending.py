"""docs/extending.md, proved: a loss, a dictionary and a method are added without touching the package."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from architecture.source import ROOT
from architecture.toys.dictionary import LatestOfEach
from architecture.toys.loss import squared
from architecture.toys.method import nearest_key_step
from dictionary_toys import LinearEncoder, images_of
from torch.nn import functional as F

from querykey import Adapter, pretrain
from querykey.dictionaries.protocol import Dictionary
from querykey.dictionaries.queue import KeyQueue
from querykey.lookup import PairRule, look_up
from querykey.losses import info_nce
from querykey.losses.by_name import LOSSES

PAGE = ROOT / "docs" / "extending.md"
TOYS = sorted((Path(__file__).parent / "toys").glob("*.py"))


@pytest.mark.parametrize("path", TOYS, ids=lambda path: path.stem)
def test_a_toy_is_short_and_named_by_the_page(path):
    assert len(path.read_text().splitlines()) < 40
    assert path.name in PAGE.read_text()


def test_files_that_the_page_names_are_there():
    named = re.findall(r"`((?:src|tests|docs|scripts)/[\w./-]+)`", PAGE.read_text())
    assert len(named) > 12
    for name in named:
        if "NAME" in name:
            continue
        assert (ROOT / name).exists(), name


@pytest.fixture
def _toy_loss(monkeypatch):
    monkeypatch.setitem(LOSSES, "squared", squared)


@pytest.mark.usefixtures("_toy_loss")
def test_a_loss_is_one_line_for_adapters():
    rows = np.random.default_rng(0).normal(size=(90, 8))
    adapter = Adapter(dim=4, loss="squared", loss_options={"weight": 0.5}, steps=3, batch_size=16)
    adapter.fit(rows, np.arange(90) % 3)
    assert adapter.settings_.loss.kind == "squared"
    assert np.isfinite(adapter.transform(rows)).all()


@pytest.mark.usefixtures("_toy_loss")
def test_the_same_line_is_enough_for_pretraining():
    settings = {"backbone": "small_cnn:4", "batch_size": 16, "steps": 2, "views.size": 8, "held_out": 0}
    settings |= {"precision": "float32", "layout": "contiguous", "num_evals": 0}
    run = pretrain("sklearn:digits", loss={"kind": "squared", "weight": 0.5}, **settings)
    assert run.settings.loss.kind == "squared"


def test_a_dictionary_is_one_class():
    latest = LatestOfEach()
    assert isinstance(latest, Dictionary)
    rows = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    latest.enqueue(rows[:3], torch.tensor([1, 2, 3]))
    latest.enqueue(rows[3:], torch.tensor([3, 4, 5]))
    stored = latest.read()
    assert stored.ids.tolist() == [1, 2, 3, 4, 5]
    assert torch.equal(stored.vectors[2], rows[3])
    ids = torch.tensor([1, 3])
    rule = PairRule(positive="id", same_id="positive")
    lookup = look_up(rows[[0, 3]], stored.vectors, query_ids=ids, key_ids=stored.ids, rule=rule)
    assert lookup.positive.sum(dim=1).tolist() == [1, 1]
    assert info_nce(lookup, temperature=0.1).isfinite().all()


def test_a_method_is_one_function():
    encoder, queue = LinearEncoder(seed=3), KeyQueue(capacity=24, dim=3)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.5)
    (images,) = images_of([8], dtype=torch.float32)
    views, ids = (images, images + 0.1), torch.arange(8)
    losses = [nearest_key_step(encoder, optimizer, queue, views, ids=ids) for _ in range(30)]
    assert len(queue) == 24
    assert losses[-1] < losses[0]
