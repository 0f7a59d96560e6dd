"""An estimate counts what a fit does: both run by a clock that only steps and scores move on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from querykey.adapter import cost
from querykey.adapter.cost import estimate_fit
from querykey.adapter.fit import fit_adapter
from querykey.adapter.rows import rows_with_direction
from querykey.adapter.settings import AdapterSettings
from querykey.adapter.split import distinct_pairs
from querykey.adapter.training import Training
from querykey.adapter.validation import DistillationScorer, LabelScorer, PairScorer, ValidationQueries

STEP, SCORE, RANK = 1.0, 3.0, 2.0
ROWS, CLASSES, WIDTH, STEPS, MORE = 80, 10, 8, 5, 12


@pytest.fixture
def clock(monkeypatch):
    """Seconds by the counts of steps, scores and ranks."""
    now = SimpleNamespace(seconds=0.0)

    def moves(owner, name, seconds):
        call = getattr(owner, name)

        def counted(*given, **named):
            now.seconds += seconds
            return call(*given, **named)

        monkeypatch.setattr(owner, name, counted)

    for scorer in (LabelScorer, PairScorer, DistillationScorer):
        moves(scorer, "score", SCORE)
        moves(scorer, "ranks", RANK)
    start = Training.__post_init__

    def started(training):
        start(training)
        take = training.plan.take

        def taken(number):
            now.seconds += STEP
            return take(number)

        object.__setattr__(training.plan, "take", taken)

    monkeypatch.setattr(Training, "__post_init__", started)
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    monkeypatch.setattr(cost, "TRIAL_SECONDS", 1e9)
    return now


def planted(task):
    draw = np.random.default_rng(0)
    y = np.arange(ROWS) % CLASSES
    rows = draw.normal(size=(CLASSES, WIDTH))[y] + 1.5 * draw.normal(size=(ROWS, WIDTH))
    vectors = torch.from_numpy(rows).float()
    if task == "labels":
        return vectors, {"labels": torch.from_numpy(y)}
    if task == "unlabelled":
        return vectors, {}
    queries = vectors + 0.5 * torch.from_numpy(draw.normal(size=rows.shape)).float()
    documents, training, _ = distinct_pairs(queries, vectors, None)
    return documents, {"pairs": training}


@pytest.mark.parametrize("task", ["labels", "pairs", "unlabelled"])
def test_the_estimate_is_within_30_percent_of_the_fit(clock, task):
    vectors, data = planted(task)
    settings = AdapterSettings(dim=4, batch_size=32, n_iter_no_change=100, steps=STEPS)  # no early stop
    found = estimate_fit(vectors, settings, **data)
    trial, clock.seconds = clock.seconds, 0.0
    fitted = fit_adapter(vectors, settings, **data)
    assert abs(found.seconds / clock.seconds - 1) < 0.3, (found, clock.seconds)
    assert abs(found.steps / fitted.report["steps_taken"] - 1) < 0.3
    assert trial < clock.seconds


def test_a_race_that_is_past_its_best_says_that_training_ends_early(clock):
    vectors, data = planted("labels")
    fast = {"learning_rate": 0.3, "steps": MORE}  # every step spoils the start
    long = estimate_fit(vectors, AdapterSettings(dim=4, batch_size=32, n_iter_no_change=100, **fast), **data)
    short = estimate_fit(vectors, AdapterSettings(dim=4, batch_size=32, n_iter_no_change=6, **fast), **data)
    assert short.steps < 0.6 * long.steps


def test_a_fit_without_training_is_its_closed_forms(clock):
    vectors, data = planted("labels")
    settings = AdapterSettings(dim=4, batch_size=32, candidates="closed_form")
    found = estimate_fit(vectors, settings, **data)
    clock.seconds = 0.0
    fit_adapter(vectors, settings, **data)
    assert (found.training, found.steps) == (0.0, 0)
    assert abs(found.seconds / clock.seconds - 1) < 0.3


def test_rows_of_zeros_are_left_out_with_the_queries_that_they_answer():
    """The last row is the answer of a query: its number would be beyond the rows that are left."""
    rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    rows[3] = 0
    pairs = torch.stack([torch.arange(40), torch.arange(20, 60)], dim=1)
    validation = ValidationQueries(rows[20:60].clone(), pairs)
    with pytest.warns(UserWarning, match="left 1 of 60 rows out of training"):
        vectors, _, found = rows_with_direction(rows, None, validation)
    assert len(vectors) == 59
    assert found.pairs[-1].tolist() == [39, 58]
    assert estimate_fit(vectors, AdapterSettings(dim=4, steps=0, batch_size=32), validation=found).seconds > 0
