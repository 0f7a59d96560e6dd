"""What every loss promises, asked of each of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from querykey import losses
from querykey.errors import ShapeError
from querykey.lookup import DensePairs, Lookup, PairRule, look_up
from querykey.losses import streaming_blocks


class Row(NamedTuple):
    """One query, as plain numbers."""

    positives: list[float]
    negatives: list[float]
    scores: list[float]  # of the pairs that take part
    targets: list[float]
    all_positives: list[float]  # of every query of the look-up


@dataclass(frozen=True)
class Case:
    name: str
    cost: Callable[[Lookup, Lookup], torch.Tensor]  # (look-up, target)
    oracle: Callable[[Row], float]
    is_labelled: bool = True  # reads which pairs are positive
    needs_positive: bool = True  # a query without positives costs 0
    needs_negative: bool = True  # a query without negatives costs 0
    is_exact: bool = True  # the gradient is the value's
    is_monotone: bool = True  # much better scores never cost more
    is_alone: bool = True  # a query's cost does not depend on the other queries
    pulls: bool = True  # no positive is pushed away and no negative pulled
    is_chunked: bool = False  # holds no matrix of its scores


def labelled(
    name: str, loss: Any, oracle: Any, *, flags: dict[str, Any] | None = None, **options: Any
) -> Case:
    return Case(
        name,
        lambda lookup, _: loss(lookup, **options),
        lambda row: oracle(row.positives, row.negatives, **options),
        **(flags or {}),
    )


def triplets(name: str, *, flags: dict[str, Any] | None = None, **options: Any) -> Case:
    return labelled(name, losses.triplet, oracles.triplet, flags=flags, **options)


def contrastive(name: str, distance: Any, oracle: Any, **margins: float) -> Case:
    return Case(
        name,
        lambda lookup, _: losses.contrastive(lookup, distance=distance, **margins),
        lambda row: oracle(row.positives, row.negatives, **margins),
        needs_positive=False,
        needs_negative=False,
        is_monotone=False,  # an average over the terms that are not 0
    )


def in_both_forms(
    name: str, loss: Any, oracle: Any, *, flags: dict[str, Any] | None = None, **options: Any
) -> list[Case]:
    """A loss that is there dense and chunked; the oracle is given the whole row."""
    name, _, kind = name.partition(", ")
    return [
        Case(
            ", ".join(filter(None, (name, kind, form))),
            lambda lookup, target, form=form: loss(lookup, target, form=form, **options),
            lambda row: oracle(row, **options),
            is_chunked=form == "chunked",
            **(flags or {}),
        )
        for form in ("dense", "chunked")
    ]


MINED = {"alpha": 2.0, "beta": 50.0, "base": 0.5, "epsilon": 0.1}
ANY = {"needs_positive": False, "needs_negative": False}
SELECTS = {"is_monotone": False}  # which triplets count depends on the scores
COSINE = {"positive_margin": 0.9, "negative_margin": 0.2}
EUCLIDEAN = {"positive_margin": 0.3, "negative_margin": 1.2}

CASES = [
    *in_both_forms(
        "info_nce", lambda lookup, _, **o: losses.info_nce(lookup, **o),
        lambda row, **o: oracles.info_nce(row.positives, row.negatives, **o),
        flags={"needs_negative": False}, temperature=0.1,
    ),
    labelled("nce", losses.nce, oracles.nce, temperature=0.1, normaliser=40.0, noise_items=20),
    *in_both_forms(
        "decoupled", lambda lookup, _, **o: losses.decoupled(lookup, **o),
        lambda row, **o: oracles.decoupled(row.positives, row.negatives, **o), temperature=0.1,
    ),
    *in_both_forms(
        "decoupled, weighted", lambda lookup, _, **o: losses.decoupled(lookup, **o),
        lambda row, **o: oracles.decoupled(
            row.positives, row.negatives, all_positives=row.all_positives, **o
        ),
        flags={"is_exact": False, "is_monotone": False, "is_alone": False, "pulls": False},
        temperature=0.1, sigma=0.5,
    ),
    labelled(
        "debiased", losses.debiased, oracles.debiased,
        flags={"needs_negative": False}, temperature=0.2, tau_plus=0.1,
    ),
    labelled(
        "hard_negative", losses.hard_negative, oracles.hard_negative,
        flags={"needs_negative": False} | SELECTS | {"pulls": False}, temperature=0.2, tau_plus=0.1, beta=1.0,
    ),
    labelled("nt_logistic", losses.nt_logistic, oracles.nt_logistic, flags=ANY, temperature=0.2),
    labelled(
        "nt_logistic, semi-hard", losses.nt_logistic, oracles.nt_logistic,
        flags=ANY | SELECTS, temperature=0.2, mining="semi_hard",
    ),
    labelled("nca", losses.nca, oracles.nca, flags={"needs_negative": True}, temperature=0.1),
    labelled("multi_similarity", losses.multi_similarity, oracles.multi_similarity, **MINED),
    labelled(
        "multi_similarity, all pairs", losses.multi_similarity, oracles.multi_similarity,
        flags=ANY, **(MINED | {"epsilon": None}),
    ),
    labelled(
        "circle", losses.circle, oracles.circle,
        flags={"is_exact": False, "is_monotone": False}, margin=0.4, gamma=20.0,
    ),
    contrastive("contrastive", "cosine", oracles.contrastive_cosine, **COSINE),
    contrastive("contrastive, euclidean", "euclidean", oracles.contrastive_euclidean, **EUCLIDEAN),
    triplets("triplet, all", flags=SELECTS, margin=0.3, mining="all", soft=False),
    triplets("triplet, hard", margin=0.3, mining="hard", soft=False),
    triplets("triplet, semi-hard", flags=SELECTS, margin=0.5, mining="semi_hard", soft=False),
    triplets("triplet, all, soft", margin=0.0, mining="all", soft=True),
    triplets("triplet, hard, soft", margin=0.3, mining="hard", soft=True),
    triplets("triplet, semi-hard, soft", flags=SELECTS, margin=0.5, mining="semi_hard", soft=True),
    labelled("rank_loss", losses.rank_loss, oracles.rank_loss),
    Case(
        "score_difference", losses.score_difference,
        lambda row: oracles.score_difference(row.scores, row.targets),
        is_labelled=False, needs_positive=False, needs_negative=False,
    ),
    *in_both_forms(
        "score_distillation", losses.score_distillation,
        lambda row, **o: oracles.score_distillation(row.scores, row.targets, **o),
        flags={"is_labelled": False, "needs_positive": False, "needs_negative": False},
        temperature=0.1, target_temperature=0.2,
    ),
]  # fmt: skip

QUERIES, KEYS = 7, 11


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """What is chunked is cut in parts and blocks here too."""
    monkeypatch.setattr(streaming_blocks, "ROWS", 3)
    monkeypatch.setattr(streaming_blocks, "KEYS", 4)


@dataclass
class Table:
    """Scores, target scores and what each pair is: 0 neither, 1 positive, 2 negative."""

    scores: torch.Tensor
    targets: torch.Tensor
    kinds: torch.Tensor

    def cost(self, case: Case) -> torch.Tensor:
        positive, negative = self.kinds == 1, self.kinds == 2
        return case.cost(
            Lookup.from_scores(self.scores, positive, negative),
            Lookup.from_scores(self.targets, positive, negative),
        )

    def cost_and_gradient(self, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.scores.detach().clone().requires_grad_()
        cost = Table(scores, self.targets, self.kinds).cost(case)
        cost.sum().backward()
        return cost.detach(), scores.grad

    def rows(self) -> list[Row]:
        out = []
        all_positives = self.scores[self.kinds == 1].tolist()
        for scores, targets, kinds in zip(
            self.scores.tolist(), self.targets.tolist(), self.kinds.tolist(), strict=True
        ):
            pairs = list(zip(scores, targets, kinds, strict=True))
            out.append(
                Row(
                    [s for s, _, kind in pairs if kind == 1],
                    [s for s, _, kind in pairs if kind == 2],
                    [s for s, _, kind in pairs if kind],
                    [t for _, t, kind in pairs if kind],
                    all_positives,
                )
            )
        return out


def table(seed: int, dtype: torch.dtype = torch.float64) -> Table:
    """Random, but for the rows that tend to go wrong."""
    random = torch.Generator().manual_seed(seed)
    scores, targets = (torch.rand(2, QUERIES, KEYS, generator=random, dtype=torch.float64) * 2 - 1).unbind()
    kinds = torch.randint(3, (QUERIES, KEYS), generator=random)
    kinds[0] = 0
    kinds[1][kinds[1] == 1] = 2
    kinds[2][kinds[2] == 2] = 1
    kinds[3] = torch.tensor([1, 2] + [0] * (KEYS - 2))
    return Table(scores.to(dtype), targets.to(dtype), kinds)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_is_the_equation(case, seed):
    made = table(seed)
    expected = torch.tensor([case.oracle(row) for row in made.rows()], dtype=torch.float64)
    torch.testing.assert_close(made.cost(case), expected, rtol=1e-9, atol=1e-12)


def test_every_loss_has_a_case_in_the_table(case):
    cost, gradient = table(0).cost_and_gradient(case)
    assert (cost > 0).sum() >= 2
    assert (gradient != 0).any(dim=1).sum() >= 2


def test_order_of_keys_does_not_matter(case):
    made, order = table(1), torch.randperm(KEYS, generator=torch.Generator().manual_seed(1))
    shuffled = Table(made.scores[:, order], made.targets[:, order], made.kinds[:, order])
    (cost, gradient), (other, other_gradient) = made.cost_and_gradient(case), shuffled.cost_and_gradient(case)
    torch.testing.assert_close(other, cost)
    torch.testing.assert_close(other_gradient, gradient[:, order])


def test_order_of_queries_is_the_order_of_costs(case):
    made, order = table(2), torch.randperm(QUERIES, generator=torch.Generator().manual_seed(2))
    shuffled = Table(made.scores[order], made.targets[order], made.kinds[order])
    torch.testing.assert_close(shuffled.cost(case), made.cost(case)[order])


SINGLE_PROCESS = pytest.mark.parametrize(
    "alone", [c for c in CASES if c.is_alone], ids=lambda case: case.name
)


@SINGLE_PROCESS
def test_a_query_costs_the_same_alone(alone):
    made = table(3)
    for i in range(QUERIES):
        single = Table(made.scores[i : i + 1], made.targets[i : i + 1], made.kinds[i : i + 1])
        torch.testing.assert_close(single.cost(alone), made.cost(alone)[i : i + 1])


@pytest.mark.parametrize("other", [1.0, -1.0, 1e4, -1e4])
def test_pairs_that_are_neither_do_not_matter(case, other):
    made = table(4)
    neither = made.kinds == 0
    changed = Table(
        made.scores.masked_fill(neither, other), made.targets.masked_fill(neither, -other), made.kinds
    )
    (cost, gradient), (other_cost, other_gradient) = (
        made.cost_and_gradient(case),
        changed.cost_and_gradient(case),
    )
    torch.testing.assert_close(other_cost, cost)
    torch.testing.assert_close(other_gradient, gradient)
    assert not gradient[neither].any()


def test_a_query_without_a_valid_term_costs_0_and_sends_no_gradient(case):
    made = table(5)
    cost, gradient = made.cost_and_gradient(case)
    empty = [0]
    if case.needs_positive:
        empty.append(1)
    if case.needs_negative:
        empty.append(2)
    assert cost[empty].tolist() == [0.0] * len(empty)
    assert not gradient[empty].any()


def test_nothing_but_empty_queries_still_runs_backward(case):
    made = table(5)
    cost, gradient = Table(made.scores, made.targets, torch.zeros_like(made.kinds)).cost_and_gradient(case)
    assert cost.tolist() == [0.0] * QUERIES
    assert gradient.tolist() == [[0.0] * KEYS] * QUERIES


@pytest.mark.parametrize(("queries", "keys"), [(3, 0), (0, 3), (0, 0)])
def test_no_keys_or_no_queries(case, queries, keys):
    empty = torch.zeros(queries, keys)
    cost, gradient = Table(empty, empty, empty.long()).cost_and_gradient(case)
    assert cost.tolist() == [0.0] * queries
    assert gradient.shape == (queries, keys)


@pytest.mark.parametrize("exact", [c for c in CASES if c.is_exact], ids=lambda case: case.name)
def test_gradient_is_the_derivative(exact):
    """Left out are those whose weights carry no gradient; their own tests hold them fixed."""
    made = table(6)
    assert torch.autograd.gradcheck(
        lambda scores: Table(scores, made.targets, made.kinds).cost(exact), made.scores.requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_finite_at_the_ends_of_the_scale(case, dtype, sign):
    made = table(7)
    scores = torch.where(made.kinds == 1, -sign, sign).to(dtype)
    cost, gradient = Table(scores, -scores, made.kinds).cost_and_gradient(case)
    assert cost.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.dtype == dtype


EXTREMES = [
    pytest.param(lambda l, _: losses.info_nce(l, temperature=0.01), id="info_nce"),
    pytest.param(lambda l, _: losses.info_nce(l, temperature=0.01, form="chunked"), id="info_nce, chunked"),
    pytest.param(lambda l, _: losses.nce(l, temperature=0.01, normaliser=1e30, noise_items=9), id="nce"),
    pytest.param(lambda l, _: losses.decoupled(l, temperature=0.01, sigma=0.01), id="decoupled"),
    pytest.param(
        lambda l, _: losses.decoupled(l, temperature=0.01, sigma=0.01, form="chunked"),
        id="decoupled, chunked",
    ),
    pytest.param(lambda l, _: losses.hard_negative(l, temperature=0.01, beta=5.0), id="hard_negative"),
    pytest.param(lambda l, _: losses.nt_logistic(l, temperature=0.01), id="nt_logistic"),
    pytest.param(lambda l, _: losses.multi_similarity(l, alpha=200.0, beta=500.0), id="multi_similarity"),
    pytest.param(lambda l, _: losses.circle(l, margin=0.25, gamma=256.0), id="circle"),
    pytest.param(lambda l, t: losses.score_distillation(l, t, temperature=0.01), id="score_distillation"),
    pytest.param(
        lambda l, t: losses.score_distillation(l, t, temperature=0.01, form="chunked"),
        id="score_distillation, chunked",
    ),
]


@pytest.mark.parametrize("loss", EXTREMES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_finite_at_extreme_settings(loss, sign):
    made = table(7, torch.float32)
    positive, negative = made.kinds == 1, made.kinds == 2
    scores = torch.where(positive, -sign, sign).float().requires_grad_()
    target = Lookup.from_scores(-scores.detach(), positive, negative)
    cost = loss(Lookup.from_scores(scores, positive, negative), target)
    cost.sum().backward()
    assert cost.isfinite().all()
    assert scores.grad.isfinite().all()
    if sign > 0:
        assert cost[3] > 1.0


LABELLED = [case for case in CASES if case.is_labelled]
PULLING = pytest.mark.parametrize(
    "labelled_case", [case for case in LABELLED if case.pulls], ids=lambda case: case.name
)


@PULLING
@pytest.mark.parametrize("seed", range(5))
def test_pulls_the_positives_up_and_pushes_the_negatives_down(labelled_case, seed):
    made = table(seed)
    _, gradient = made.cost_and_gradient(labelled_case)
    assert (torch.where(made.kinds == 1, gradient, 0.0).sum(dim=1) <= 1e-12).all()
    assert (gradient[made.kinds == 2] >= 0).all()


MONOTONE = [case for case in LABELLED if case.is_monotone]


@pytest.mark.parametrize("monotone", MONOTONE, ids=lambda case: case.name)
@pytest.mark.parametrize("seed", range(5))
def test_better_scores_do_not_cost_more(monotone, seed):
    """Left out are those where what is averaged over, or its weight, depends on the scores."""
    made = table(seed)
    better = made.scores + 0.3 * (made.kinds == 1) - 0.3 * (made.kinds == 2)
    before, after = made.cost(monotone), Table(better, made.targets, made.kinds).cost(monotone)
    assert (after <= before + 1e-12).all()
    assert (after < before).any()


def test_float32_is_close_to_float64(case):
    made = table(8)
    single = Table(made.scores.float(), made.targets.float(), made.kinds)
    (cost, gradient), (cost32, gradient32) = made.cost_and_gradient(case), single.cost_and_gradient(case)
    assert cost32.dtype == torch.float32
    torch.testing.assert_close(cost32.double(), cost, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient32.double(), gradient, rtol=1e-4, atol=1e-5)


def test_half_precision_scores_are_summed_in_float32(case):
    made = table(9, torch.bfloat16)
    same = Table(made.scores.float(), made.targets.float(), made.kinds)
    (cost, gradient), (cost32, gradient32) = made.cost_and_gradient(case), same.cost_and_gradient(case)
    assert torch.equal(cost, cost32)
    assert torch.equal(gradient, gradient32.bfloat16())


def test_pairs_by_rule_cost_as_pairs_by_mask(case):
    random = torch.Generator().manual_seed(10)
    queries, keys, frozen_queries, frozen_keys = (
        torch.nn.functional.normalize(torch.randn(n, 4, generator=random, dtype=torch.float64))
        for n in (5, 9, 5, 9)
    )
    query_labels, key_labels = torch.tensor([0, 0, 1, 2, -1]), torch.tensor([0, 0, 0, 1, 1, 2, 3, -1, -1])
    ids = {"query_ids": torch.arange(5), "key_ids": torch.arange(9)}
    known = {"query_labels": query_labels, "key_labels": key_labels}
    rule = PairRule(positive="label")
    by_rule = look_up(queries.requires_grad_(), keys.requires_grad_(), rule=rule, **ids, **known)
    target = look_up(frozen_queries, frozen_keys, rule=rule, **ids, **known)
    by_mask = Lookup(queries, keys, DensePairs(by_rule.positive, by_rule.negative))
    cost = case.cost(by_rule, target)
    torch.testing.assert_close(case.cost(by_mask, target), cost)
    in_parts = torch.cat([case.cost(by_rule.rows(i, i + 2), target.rows(i, i + 2)) for i in (0, 2, 4)])
    torch.testing.assert_close(in_parts, cost)

    cost.sum().backward()
    assert queries.grad.abs().sum() > 0
    assert keys.grad.abs().sum() > 0


@pytest.mark.parametrize(("start", "stop"), [(0, QUERIES), (2, 5), (6, 7), (3, 3)])
def test_rows_of_a_look_up_cost_what_they_cost_in_the_whole(case, start, stop):
    """Value and gradient: so a process computes its own rows alone."""
    made = table(15)
    scores = made.scores.requires_grad_()
    positive, negative = made.kinds == 1, made.kinds == 2
    lookup, target = (
        Lookup.from_scores(values, positive, negative) for values in (scores, made.targets)
    )  # fmt: skip
    cost, part = case.cost(lookup, target), case.cost(lookup.rows(start, stop), target.rows(start, stop))
    torch.testing.assert_close(part, cost[start:stop])
    torch.testing.assert_close(
        torch.autograd.grad(part.sum(), scores)[0], torch.autograd.grad(cost[start:stop].sum(), scores)[0]
    )


@pytest.mark.parametrize("loss", [c for c in CASES if not c.is_labelled], ids=lambda case: case.name)
def test_the_target_gets_no_gradient_and_names_the_pairs(loss):
    made = table(11)
    targets = made.targets.requires_grad_()
    scores = made.scores.requires_grad_()
    nothing = torch.zeros(QUERIES, KEYS, dtype=torch.bool)
    cost = loss.cost(
        Lookup.from_scores(scores, nothing, nothing),
        Lookup.from_scores(targets, made.kinds == 1, made.kinds == 2),
    )
    torch.testing.assert_close(cost, made.cost(loss))
    cost.sum().backward()
    assert targets.grad is None


@pytest.mark.parametrize("loss", [c for c in CASES if not c.is_labelled], ids=lambda case: case.name)
def test_a_target_of_another_size_is_refused(loss):
    made = table(12)
    positive, negative = made.kinds == 1, made.kinds == 2
    lookup = Lookup.from_scores(made.scores, positive, negative)
    target = Lookup.from_scores(made.scores[:, 1:], positive[:, 1:], negative[:, 1:])
    with pytest.raises(ShapeError) as error:
        loss.cost(lookup, target)
    assert str(error.value) == (
        "the look-up is 7 x 11 (queries x keys), its target 7 x 10; "
        "look the same queries up among the same keys for both"
    )


class LargestTensor(TorchDispatchMode):
    """Remembers the size in bytes of the largest tensor that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return out


def test_trap_5_5_no_matrix_of_positive_pairs_by_negative_pairs(case, monkeypatch):
    """64 queries, 8,192 keys, 100 classes: such a matrix has 10.9 GB, a row-wise one 2.1 MB.

    What is chunked has none of queries by keys either: not of scores, and not of masks.
    """
    monkeypatch.setattr(streaming_blocks, "ROWS", 64)
    monkeypatch.setattr(streaming_blocks, "KEYS", 1024)
    random = torch.Generator().manual_seed(13)
    labels = torch.arange(8192) % 100
    queries, keys = torch.randn(64, 8, generator=random), torch.randn(8192, 8, generator=random)
    lookup = look_up(
        queries.requires_grad_(), keys, query_ids=torch.arange(64), key_ids=torch.arange(8192),
        query_labels=labels[:64], key_labels=labels, rule=PairRule(positive="label"), score="cosine",
    )  # fmt: skip
    with LargestTensor() as largest:
        case.cost(lookup, lookup).sum().backward()
    if case.is_chunked:
        assert largest.bytes < 64 * 8192
    else:
        assert 64 * 8192 * 4 <= largest.bytes <= 64 * 8192 * 8
    assert queries.grad.isfinite().all()


def test_trap_5_11_exponentials_do_not_overflow_in_half_precision(case):
    """exp(1 / 0.07) is 1.6e6; float16 ends at 65,504."""
    ends = torch.tensor([[1.0, 1.0, 1.0, -1.0]], dtype=torch.float16)
    made = Table(ends, -ends, torch.tensor([[1, 2, 2, 2]]))
    cost, gradient = made.cost_and_gradient(case)
    assert torch.isfinite(cost).all()
    assert gradient.isfinite().all()
    same = Table(ends.double(), -ends.double(), made.kinds)
    torch.testing.assert_close(cost.double(), same.cost(case), rtol=1e-5, atol=1e-6)


NOT_OF_A_LOOKUP_ALONE = {"nt_xent", "nce_normaliser", "is_chunked", "LearnedTemperature"}


def test_every_public_loss_has_a_case():
    asked = {case.name.split(",")[0] for case in CASES}
    assert asked | NOT_OF_A_LOOKUP_ALONE == set(losses.__all__)
