"""Losses at the ends of their settings: a finite number as right as float64 has it, or a refusal."""

import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from querykey import Adapter, losses
from querykey.encoders.heads import FCLayer
from querykey.errors import ConfigError, DataError, RangeError, ShapeError
from querykey.lookup import DensePairs, Lookup, PairRule
from querykey.lookup.nearest import nearest, rough_cosines
from querykey.lookup.top_k import top_k
from querykey.losses.by_name import LOSSES, takes_form, takes_target, takes_temperature
from querykey.losses.streaming import chosen_form
from querykey.optim import scaled_learning_rate

POSITIVE = torch.arange(20)[:, None] % 4 == torch.arange(60) % 4


def looked_up(dtype=torch.float32, pairs=None):
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(80, 8, generator=generator), dim=1).to(dtype)
    queries, keys = (part.clone().requires_grad_() for part in rows.split([20, 60]))
    return Lookup(queries, keys, pairs or DensePairs(POSITIVE, ~POSITIVE))


def value_and_gradients(loss, dtype, **options):
    lookup = looked_up(dtype)
    value = loss(lookup, **options)
    return torch.cat([value[:, None], *torch.autograd.grad(value.sum(), [lookup.queries])], dim=1).detach()


@pytest.mark.parametrize("beta", [1.0, 100.0, 1e6])
def test_weights_of_hard_negatives_are_right_at_any_sharpness(beta):
    found, exact = (
        value_and_gradients(losses.hard_negative, dtype, temperature=0.1, beta=beta)
        for dtype in (torch.float32, torch.float64)
    )
    assert float((found - exact).abs().max()) < 1e-3  # 13 before, at 1e6


@pytest.mark.parametrize("temperature", [1e-20, 1e-4, 1e4, 1e20])
@pytest.mark.parametrize("name", [name for name in LOSSES if takes_temperature(name)])
def test_a_loss_is_finite_at_any_temperature(name, temperature):
    forms = [{"form": "dense"}, {"form": "chunked"}] if takes_form(name) else [{}]
    for form in forms:
        lookup = looked_up()
        given = (lookup, looked_up()) if takes_target(name) else (lookup,)
        value = LOSSES[name](*given, temperature=temperature, **form)
        gradients = torch.autograd.grad(value.sum(), [lookup.queries, lookup.keys])
        assert all(bool(one.isfinite().all()) for one in (value, *gradients))


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (losses.info_nce, {"temperature": 1e-40}, "temperature must be at least 1e-20, got 1e-40"),
        (losses.decoupled, {"temperature": 0.1, "sigma": 1e-300}, "sigma must be > 0 and finite, or None"),
        (losses.triplet, {"margin": math.inf}, "margin must be >= 0 and finite with all triplets, got inf"),
        (losses.multi_similarity, {"base": math.nan}, "base must be finite, got nan"),
        (losses.multi_similarity, {"epsilon": math.inf}, "epsilon must be >= 0, got inf"),
        (
            losses.nce, {"temperature": 0.1, "normaliser": 1.0, "noise_items": 10**30},
            r"noise_items must be below 2\^63",
        ),
    ],
)  # fmt: skip
def test_what_float32_does_not_hold_is_refused(loss, options, message):
    with pytest.raises(RangeError, match=message):
        loss(looked_up(), **options)


def test_a_temperature_of_three_dimensions_is_refused():
    """It broadcast to scores of another shape."""
    with pytest.raises(ShapeError, match=r"temperature has shape \[1, 1, 1\]"):
        losses.info_nce(looked_up(), temperature=torch.tensor([[[0.1]]]))


def test_a_pair_at_the_bound_is_kept_or_left_out_with_its_counterpart():
    """A positive and a negative of which rounding may keep one alone."""
    negative = torch.linspace(-0.9, 0.9, 2000)
    mask = torch.tensor([[True, False]]).expand(2000, -1).contiguous()
    for epsilon in (0.1, 0.3, 1e-3):
        scores = torch.stack([negative + epsilon, negative], dim=1).requires_grad_()
        losses.multi_similarity(Lookup.from_scores(scores, mask, ~mask), epsilon=epsilon).sum().backward()
        assert set((scores.grad != 0).sum(dim=1).tolist()) <= {0, 2}


@pytest.mark.parametrize("mode", ["similar", "hard_negative", "hard_positive", "semi_hard"])
def test_what_is_not_finite_is_never_selected(mode):
    lookup = looked_up()
    with torch.no_grad():
        lookup.keys[3], lookup.keys[4, 0], lookup.keys[5, 1] = torch.nan, torch.inf, -torch.inf
        lookup.queries[7, 2] = torch.nan
    found = top_k(lookup, 60, mode)
    assert not torch.isin(found, torch.tensor([3, 4, 5])).any()
    assert (found[7] == -1).all()
    assert (found[0] >= 0).any()


def test_rows_of_width_0_are_equal():
    rows = torch.zeros(3, 0)
    assert nearest(rows, rows, 2)[1].tolist() == [[0, 1]] * 3
    assert rough_cosines(rows, rows, 1)[0].tolist() == [[0.0]] * 3
    assert losses.nt_xent(rows, rows, temperature=0.5).allclose(torch.tensor(5.0).log())
    with pytest.raises(ShapeError, match="queries are 0 wide and keys 8"):
        plain(nearest)(rows, torch.zeros(3, 8), 2)


def plain(function):
    """A function or method without the type checks of the tests, which would speak first."""
    return inspect.unwrap(function)


@pytest.mark.parametrize(
    "call",
    [
        lambda: plain(Lookup.__post_init__)(SimpleNamespace(score="cosin")),
        lambda: plain(nearest)(torch.eye(2), torch.eye(2), 1, score="Cosine"),
        lambda: plain(PairRule.__post_init__)(SimpleNamespace(positive="labels", same_id="masked")),
        lambda: plain(PairRule.__post_init__)(SimpleNamespace(positive="id", same_id="mask")),
        lambda: plain(FCLayer.__init__)(FCLayer.__new__(FCLayer), 3, 3, kind="lin"),
        lambda: plain(losses.triplet)(looked_up(), mining="semihard"),
        lambda: plain(losses.nt_logistic)(looked_up(), temperature=0.1, mining="hard"),
        lambda: plain(losses.contrastive)(looked_up(), distance="l2"),
        lambda: plain(chosen_form)("tiled", 3, 3),
        lambda: plain(top_k)(looked_up(), 1, "hard"),
        lambda: plain(scaled_learning_rate)(256, rule="sqrt", base=0.1),
    ],
)
def test_a_word_that_is_no_choice_is_refused(call):
    """`score="cosin"` gave dot products, and most others an AssertionError."""
    with pytest.raises(ConfigError, match=r"must be .*; got '"):
        call()


@pytest.mark.parametrize("labels", [None, [0, 1] * 10])
def test_rows_that_are_all_equal_are_refused(labels):
    """With labels the layer was one of zeros, and so was each adapted row."""
    rows = np.arange(1, 21, dtype=np.float32)[:, None] * np.ones((20, 6), dtype=np.float32)
    with pytest.raises(DataError, match=r"all 20 rows of .* are equal but for their lengths"):
        Adapter(dim=2, steps=0, batch_size=8).fit(rows, labels)
