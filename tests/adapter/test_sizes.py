"""Sizes and precisions of one fit: prefixes, oracles of how they are trained, what is validated and saved."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from querykey import Adapter
from querykey.adapter.codes import fit_codes, itq
from querykey.adapter.fit import _presets
from querykey.adapter.ladder import prefix
from querykey.adapter.sampling import _learner, _weighted_sizes, plan_of_items
from querykey.adapter.selection import at_best_temperature, mean_at_best
from querykey.adapter.sequential import SequentialLayer, cayley, gumbel_mask
from querykey.adapter.settings import AdapterSettings, resolve
from querykey.adapter.validation import LabelScorer
from querykey.distributed.process_group import SINGLE_PROCESS
from querykey.encoders.heads import FCLayer, orthogonal
from querykey.errors import ConfigError, RangeError, StoreError
from querykey.lookup import PairRule, look_up
from querykey.losses import nca
from querykey.runtime import load

DIMS = (24, 16, 8)
WIDTH = 32
CHEAP = {
    "steps": 4, "batch_size": 32, "loss": "nca", "classes": "known", "fc": "linear",
    "candidates": ("pca", "pca_uncentred", "soft_whitening 0.25", "trained"),
}  # fmt: skip


def clusters(rows=200, classes=20, seed=0):
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(classes, WIDTH)) * np.linspace(2, 0.2, WIDTH)
    y = np.arange(rows) % classes
    return (centres[y] + 2.0 * draw.normal(size=(rows, WIDTH))).astype(np.float32), y


@pytest.fixture(scope="module")
def fitted():
    return Adapter(dims=DIMS, bits=[8, 1], **CHEAP).fit(*clusters())


def test_each_size_is_a_prefix_of_the_largest(fitted):
    X, _ = clusters(seed=1)
    whole = fitted.transform(X)
    assert whole.shape == (200, 24)
    for size in DIMS:
        z, first = fitted.transform(X, dim=size), whole[:, :size]
        np.testing.assert_allclose(z, first / np.linalg.norm(first, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(RangeError, match="has the sizes 24, 16, 8; got dim=12"):
        fitted.transform(X, dim=12)


def test_every_size_and_code_is_listed_with_its_bytes_and_quality(fitted):
    assert [(one["dim"], one["bits"], one["bytes"]) for one in fitted.frontier_] == [
        (24, 32, 96), (24, 8, 24), (24, 1, 3), (16, 32, 64), (16, 8, 16), (16, 1, 2), (8, 32, 32), (8, 8, 8),
        (8, 1, 1),
    ]  # fmt: skip
    for one in fitted.frontier_:
        assert 0 <= one["low"] <= one["quality"] <= one["high"] <= 1
        assert one["metric"] == "R@1"
    assert [one["recommended"] for one in fitted.frontier_].count(True) == 1
    quality = {(one["dim"], one["bits"]): one["quality"] for one in fitted.frontier_}
    assert abs(quality[24, 8] - quality[24, 32]) < 0.03
    assert quality[24, 32] > quality[24, 1] > quality[8, 1] > 0.1


def test_no_size_is_below_its_best_closed_form_by_more_than_the_interval(fitted):
    rows = fitted.report_["sizes"]
    assert [row["dim"] for row in rows] == list(DIMS)
    assert all(row["difference"]["high"] >= 0 for row in rows)
    assert all(row["metric"] == "R@1" for row in rows)


def test_what_is_below_at_one_size_is_refused_though_its_mean_is_best(monkeypatch):
    """A candidate that is best in the mean, and whose smallest size is spoilt, is not returned."""

    def ranks_at(self, candidate, size):
        values = torch.full((len(self.selection),), 0.5)
        return "R@1", values - 0.2 if candidate.name.startswith("disc") and size == 8 else values

    X, y = clusters()
    settings = CHEAP | {"dims": DIMS, "steps": 0, "candidates": ("pca", "pca_uncentred", "discriminant")}
    best = Adapter(**settings).fit(X, y).report_["candidate"]
    assert best.startswith("discriminant")
    monkeypatch.setattr("querykey.adapter.scoreboard.Scoreboard._ranks_at", ranks_at)
    monkeypatch.setattr("querykey.adapter.scoreboard.Scoreboard._best_at", lambda *_: "pca")
    report = Adapter(**settings).fit(X, y).report_
    assert report["candidate"].startswith("pca")
    assert report["refused"][best] == "8 numbers: R@1 is below pca by more than the interval"


def test_a_score_of_several_sizes_is_the_mean_of_each_at_its_own_temperature():
    scores = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0))
    each = [at_best_temperature(scores[:, :, i], seed=0) for i in range(2)]
    torch.testing.assert_close(at_best_temperature(scores, seed=0), (each[0] + each[1]) / 2)
    means = scores.double().mean(dim=0)
    assert mean_at_best(scores) == pytest.approx(float((means[:, 0].max() + means[:, 1].max()) / 2))
    assert math.isnan(mean_at_best(scores[:0]))


@pytest.mark.parametrize("weights", ["equal", "inverse"])
def test_a_joint_step_costs_the_weighted_sum_of_the_sizes(weights):
    draw = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(12, 6, generator=draw), dim=1)
    labels = torch.arange(12) % 4
    given = AdapterSettings(dims=(2, 5), size_weights=weights, learning_rate=1e-3, batch_size=4)
    settings = resolve(given, task="labels", items=12, width=6)
    assert settings.dims == (5, 2)
    fc = FCLayer(6, 5)
    fc.set_affine_(torch.randn(5, 6, generator=draw), torch.randn(5, generator=draw))
    learner = _learner(fc, settings, PairRule(positive="label"), SINGLE_PROCESS)
    lookup = look_up(
        fc(rows), fc(rows), query_ids=torch.arange(12), key_ids=torch.arange(12), query_labels=labels,
        key_labels=labels, rule=PairRule(positive="label"),
    )  # fmt: skip
    total = 0.0
    for size in (5, 2):
        weight = 1.0 if weights == "equal" else (1 / size) / ((1 / 5 + 1 / 2) / 2)
        z = fc.project(rows)[:, :size].detach()
        z = z / z.norm(dim=1, keepdim=True)
        for i in range(12):
            right = sum(
                math.exp(float(z[i] @ z[j]) / 0.07) for j in range(12) if labels[j] == labels[i] and j != i
            )
            every = sum(math.exp(float(z[i] @ z[j]) / 0.07) for j in range(12) if j != i)
            total -= weight * math.log(right / every) / 12 / 2
    assert learner.mean(lookup).item() == pytest.approx(total, rel=1e-4)
    assert nca(lookup, temperature=0.07).mean().item() != pytest.approx(total, rel=1e-3)


def test_many_rows_are_drawn_and_each_query_has_its_nearest_among_them(monkeypatch):
    monkeypatch.setattr("querykey.adapter.fit.LARGEST_WHOLE", 50)
    rows = F.normalize(torch.randn(60, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    (recipe,) = _presets(AdapterSettings(dims=(4, 2)), "unlabelled", 60)
    assert (recipe.sampled, recipe.negatives) == (8192, 0)
    few = AdapterSettings.from_parameters(
        dims=(4, 2), sampled=3, negatives=5, batch_size=8, learning_rate=1e-3
    )
    settings = resolve(few, task="unlabelled", items=60, width=6)
    lookup = plan_of_items(FCLayer(6, 4), settings, rows, torch.arange(60), None).take(0).lookup
    assert int(lookup.negative.sum(dim=1).min()) >= 5


def test_the_rotation_of_a_stage_is_orthogonal_and_begins_at_the_identity():
    block = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[3:, :3] = True
    turn = cayley(block.flatten(), mask)
    torch.testing.assert_close(turn @ turn.T, torch.eye(8).double())
    assert torch.linalg.det(turn) == pytest.approx(1)
    torch.testing.assert_close(cayley(torch.zeros(15), mask), torch.eye(8))
    skew = torch.zeros(8, 8).double()
    skew[3:, :3], skew[:3, 3:] = block, -block.T
    torch.testing.assert_close(turn, torch.linalg.inv(torch.eye(8) + skew) @ (torch.eye(8) - skew))


@pytest.mark.parametrize("kind", ["linear", "two_layer", "residual"])
def test_a_stage_changes_no_score_of_a_larger_size_and_folds_into_the_layer(kind):
    draw = torch.Generator().manual_seed(0)
    fc = FCLayer(12, 12, kind=kind)
    with torch.no_grad():
        for parameter in fc.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    rows = F.normalize(torch.randn(40, 12, generator=draw), dim=1)
    layer = SequentialLayer(fc, (12, 6, 3), "sequential")
    before = layer(rows).detach()
    for stage, size in ((1, 6), (2, 3)):
        layer.next_stage_()
        assert not any(parameter.requires_grad for parameter in fc.parameters())
        with torch.no_grad():
            layer.turns[stage - 1].normal_(generator=draw)
        got = layer(rows).detach()
        torch.testing.assert_close(layer.stage_rows(rows), F.normalize(got[:, :size], dim=1))
        assert not torch.allclose(got[:, :size], before[:, :size], atol=0.05)
        larger = (12, 6)[stage - 1]
        torch.testing.assert_close(got @ got.T, before @ before.T, rtol=0, atol=1e-5)
        a, b = (F.normalize(z[:, :larger], dim=1) for z in (got, before))
        torch.testing.assert_close(a @ a.T, b @ b.T, rtol=0, atol=1e-5)
        before = got
    torch.testing.assert_close(layer.fold_()(rows), before, rtol=0, atol=1e-5)


def test_a_gumbel_mask_has_as_many_ones_and_the_gradient_of_the_soft_mask():
    logits = torch.tensor([3.0, 0.0, -1.0, 1.0], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    mask = gumbel_mask(logits, 2, temperature=0.5, generator=torch.Generator().manual_seed(4))
    uniform = torch.rand(4, generator=torch.Generator().manual_seed(4))
    noisy = [float(logits.detach()[i]) - math.log(-math.log(float(uniform[i]))) for i in range(4)]
    top = sorted(range(4), key=lambda i: -noisy[i])[:2]
    assert mask.detach().round().tolist() == [float(i in top) for i in range(4)]
    (mask * weights).sum().backward()
    shares = [math.exp(value / 0.5) for value in noisy]
    shares = [share / sum(shares) for share in shares]
    middle = sum(share * float(w) for share, w in zip(shares, weights, strict=True))
    want = [2 * share * (float(w) - middle) / 0.5 for share, w in zip(shares, weights, strict=True)]
    torch.testing.assert_close(logits.grad, torch.tensor(want), rtol=1e-4, atol=1e-5)
    drawn = [
        gumbel_mask(logits.detach(), 1, temperature=1.0, generator=torch.Generator().manual_seed(i))
        for i in range(600)
    ]
    torch.testing.assert_close(
        torch.stack(drawn).mean(dim=0), logits.detach().softmax(dim=0), rtol=0, atol=0.06
    )


def test_a_selection_takes_the_informative_dimensions_at_any_index():
    """Classes are told apart by the last three numbers of six; the first three are noise."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 8
    signal = torch.randn(8, 3, generator=draw)[labels] + 0.2 * torch.randn(80, 3, generator=draw)
    rows = F.normalize(torch.cat([torch.randn(80, 3, generator=draw), signal], dim=1), dim=1)
    fc = FCLayer(6, 6)
    fc.set_affine_(torch.eye(6), torch.zeros(6))
    layer = SequentialLayer(fc, (6, 3), "selection")
    layer.next_stage_()
    optimizer, ids = torch.optim.AdamW(layer.parameters(), lr=3e-3), torch.arange(80)
    for step in range(80):
        layer.step, layer.progress = step, step / 80
        z = layer.stage_rows(rows)
        lookup = look_up(
            z, z, query_ids=ids, key_ids=ids, query_labels=labels, key_labels=labels,
            rule=PairRule(positive="label"),
        )  # fmt: skip
        optimizer.zero_grad()
        nca(lookup, temperature=0.1).mean().backward()
        optimizer.step()
    before = layer(rows).detach()
    torch.testing.assert_close(before[:, :3], rows[:, 3:])
    torch.testing.assert_close(layer.fold_()(rows), before)


def test_itq_finds_a_rotation_of_signs_and_never_moves_away_from_them():
    draw = np.random.default_rng(0)
    truth = np.linalg.qr(draw.normal(size=(6, 6)))[0]
    rows = np.sign(draw.normal(size=(400, 6))) @ truth + 0.05 * draw.normal(size=(400, 6))
    start = orthogonal(6, 6, seed=0).double().numpy()
    errors = []
    for iterations in (0, 1, 2, 5, 30):
        found = itq(rows, start, iterations=iterations)
        turned = rows @ found.T
        errors.append(float(((turned - np.sign(turned)) ** 2).sum()))
        np.testing.assert_allclose(found @ found.T, np.eye(6), atol=1e-6)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_ranges_hold_the_largest_number_of_training_rows_and_bits_have_their_mean_at_the_threshold():
    rows = F.normalize(torch.randn(500, 16, generator=torch.Generator().manual_seed(0)) + 0.5, dim=1)
    settings = AdapterSettings(dims=(16, 8), bits=(8, 1), rotation="random")
    codes = fit_codes(lambda some: some, rows, settings)
    assert sorted(codes) == [(8, 1), (8, 8), (16, 1), (16, 8)]
    small = F.normalize(rows[:, :8], dim=1).numpy()
    np.testing.assert_allclose(codes[8, 8].tensors["scale"], np.abs(small).max() / 127, rtol=1e-6)
    turn = codes[8, 1].tensors["rotation"]
    np.testing.assert_allclose(turn, orthogonal(8, 8, seed=0).numpy(), atol=1e-6)
    np.testing.assert_allclose(codes[8, 1].tensors["threshold"], turn @ small.mean(axis=0), atol=1e-6)
    assert 0.3 < np.unpackbits(codes[8, 1].encode(small), axis=1).mean() < 0.7


def test_a_saved_adapter_gives_the_same_bits_here_and_in_the_runtime(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    X, _ = clusters(seed=1)
    read, runtime = Adapter.load(tmp_path / "run"), load(tmp_path / "run")
    assert read.frontier_ == fitted.frontier_
    assert runtime.dims == DIMS
    for size in DIMS:
        np.testing.assert_array_equal(read.transform(X, dim=size), fitted.transform(X, dim=size))
        np.testing.assert_allclose(runtime.transform(X, dim=size), fitted.transform(X, dim=size), atol=1e-6)
        np.testing.assert_allclose(
            runtime.transform(X[0], dim=size), fitted.transform(X[:1], dim=size)[0], atol=1e-6
        )
        for bits in (8, 1):
            codes = fitted.quantize(X, dim=size, bits=bits)
            assert codes.nbytes == len(X) * size * bits // 8
            for other in (read, runtime):
                np.testing.assert_array_equal(other.quantize(X, dim=size, bits=bits), codes)
                np.testing.assert_array_equal(other.quantize(X[3:4], dim=size, bits=bits), codes[3:4])
            decoded = fitted.code(dim=size, bits=bits).decode(codes)
            cosine = (decoded * fitted.transform(X, dim=size)).sum(axis=1)
            assert cosine.min() > (0.97 if bits == 8 else 0.4)


def test_rows_of_any_magnitude_are_fitted_and_coded_alike(fitted):
    """A power of two rounds nothing, so every bit must be the same."""
    X, y = clusters()
    scaled = Adapter(dims=DIMS, bits=[8, 1], **CHEAP).fit(np.ldexp(X, 30), y)
    for name, tensor in fitted.fc_.state_dict().items():
        assert torch.equal(scaled.fc_.state_dict()[name], tensor)
    for (dim, bits), code in fitted.codes_.items():
        for name, value in code.tensors.items():
            np.testing.assert_array_equal(scaled.codes_[dim, bits].tensors[name], value)
        codes = fitted.quantize(X, dim=dim, bits=bits)
        for power in (-80, 80):
            other = fitted.quantize(np.ldexp(X, power), dim=dim, bits=bits)
            np.testing.assert_array_equal(other, codes)
    mixed = X * 10.0 ** np.random.default_rng(0).uniform(-12, 12, (len(X), 1)).astype(np.float32)
    np.testing.assert_array_equal(fitted.quantize(mixed[5:6]), fitted.quantize(mixed)[5:6])


def test_codes_that_were_changed_or_are_gone_are_refused(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    codes = tmp_path / "run" / "codes.safetensors"
    content = codes.read_bytes()
    codes.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for read in (load, Adapter.load):
        with pytest.raises(StoreError, match=r"codes.safetensors is damaged or was changed"):
            read(tmp_path / "run")
    codes.unlink()
    for read in (load, Adapter.load):
        with pytest.raises(StoreError, match=r"codes.safetensors is missing"):
            read(tmp_path / "run")
    described = tmp_path / "run" / "adapter.json"
    about = json.loads(described.read_text()) | {"codes": None, "dims": [99]}
    described.write_text(json.dumps(about))
    with pytest.raises(StoreError, match=r"dims \[99\] are not sizes"):
        load(tmp_path / "run")


def test_one_rotation_serves_all_smaller_sizes_and_turns_nothing_within_a_group():
    draw = torch.Generator().manual_seed(0)
    fc = FCLayer(12, 12)
    fc.set_affine_(torch.randn(12, 12, generator=draw), torch.randn(12, generator=draw))
    layer = SequentialLayer(fc, (12, 6, 3), "rotation")
    assert layer.stages == ((12,), (6, 3))
    rows = F.normalize(torch.randn(40, 12, generator=draw), dim=1)
    before = layer(rows).detach()
    layer.next_stage_()
    with torch.no_grad():
        layer.turns[0].normal_(generator=draw)
    got = layer(rows).detach()
    torch.testing.assert_close(got @ got.T, before @ before.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(layer.stage_rows(rows), F.normalize(got[:, :6], dim=1))
    assert not torch.allclose(got[:, :3], before[:, :3], atol=0.05)
    # axes 0-2, 3-5 and 6-11: a turn within one of them changes no score of 12, 6 or 3 numbers
    assert len(layer.turns[0]) == 3 * 3 + 6 * 6
    group = torch.tensor([0] * 3 + [1] * 3 + [2] * 6)
    assert torch.equal(layer.masks[0], group[:, None] > group)
    torch.testing.assert_close(layer.fold_()(rows), got, rtol=0, atol=1e-5)


def test_a_rotation_is_trained_by_the_weighted_sum_over_the_smaller_sizes():
    settings = resolve(
        AdapterSettings(dims=(8, 4, 2), ladder="rotation", size_weights="inverse"),
        task="unlabelled", items=500, width=12,
    )  # fmt: skip
    layer = SequentialLayer(FCLayer(12, 8), settings.sizes, "rotation")
    assert list(_weighted_sizes(layer, settings)) == []
    layer.next_stage_()
    assert [(size, round(weight, 6)) for size, weight in _weighted_sizes(layer, settings)] == [
        (4, round(2 / 3, 6)), (2, round(4 / 3, 6)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "task", "ladder"),
    [({"target": "frozen"}, "unlabelled", "rotation"), ({}, "unlabelled", "joint"), ({}, "labels", "joint"),
     ({"target": "frozen", "ladder": "joint"}, "unlabelled", "joint")],
)  # fmt: skip
def test_sizes_that_keep_frozen_neighbours_are_rotated_and_others_joint(given, task, ladder):
    settings = resolve(AdapterSettings(dims=(8, 4), **given), task=task, items=500, width=12)
    assert settings.ladder == ladder


@pytest.mark.parametrize("ladder", ["joint", "rotation", "sequential", "selection"])
def test_every_ladder_is_fitted_to_rows_alone_and_twice_to_the_same_bits(ladder):
    X, _ = clusters(rows=120)
    settings = {
        "dims": (16, 8),
        "ladder": ladder,
        "steps": 12,
        "candidates": ("pca", "trained"),
        "batch_size": 32,
    }
    one, two = (Adapter(**settings).fit(X) for _ in range(2))
    for name, tensor in one.fc_.state_dict().items():
        assert torch.equal(tensor, two.fc_.state_dict()[name])
    assert one.report_["candidate"].startswith("trained")
    assert one.frontier_[0]["metric"] == "overlap@10"


def test_pairs_are_fitted_and_evaluated_at_every_size():
    X, _ = clusters(rows=120)
    draw = np.random.default_rng(3)
    queries = X + 0.3 * draw.normal(size=X.shape).astype(np.float32)
    adapter = Adapter(dims=(16, 8), bits=[1], **CHEAP | {"loss": "info_nce", "classes": None}).fit_pairs(
        queries, X
    )
    assert adapter.frontier_[0]["metric"] == "MRR"
    assert adapter.quantize(X, dim=8, bits=1).shape == (120, 1)


def test_codes_of_a_query_side_adapter_are_those_of_the_documents_as_they_are():
    X, _ = clusters(rows=120)
    adapter = Adapter(side="query", bits=[8], steps=0, batch_size=32).fit_pairs(X[:60], X[60:])
    codes = adapter.quantize(X[60:])
    unit = X[60:] / np.linalg.norm(X[60:], axis=1, keepdims=True)
    np.testing.assert_array_equal(codes, adapter.code().encode(unit))
    assert [(one["dim"], one["bits"]) for one in adapter.frontier_] == [(32, 32), (32, 8)]


def test_nothing_held_out_has_bytes_and_no_quality():
    X, _ = clusters(rows=60)
    adapter = Adapter(dims=(16, 8), bits=[8], validation_fraction=0.0, batch_size=32).fit(X)
    assert [one["quality"] for one in adapter.frontier_] == [None] * 4
    assert not any(one["recommended"] for one in adapter.frontier_)
    assert adapter.quantize(X, dim=8).shape == (60, 8)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"dims": (40, 8)}, RangeError, r"from 1 to the width of the features, 32; got \[40, 8\]"),
        ({"dims": (16, 0)}, RangeError, "dims must be from 1"),
        ({"dims": (16, 8), "dim": 8}, ConfigError, "largest of dims is the width, so leave out dim"),
        ({"bits": (4,)}, RangeError, "bits must be 8 or 1, got 4"),
        ({"dims": (16, 12), "bits": (1,)}, RangeError, "multiple of 8; got 12"),
        ({"dims": (16, 8), "side": "query"}, ConfigError, "so dims must be left out"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, error, message):
    X, y = clusters(rows=40)
    with pytest.raises(error, match=message):
        Adapter(**settings).fit(X, y)


def test_scores_of_several_sizes_are_those_of_each_prefix():
    rows = F.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    scorer = LabelScorer(rows, torch.arange(30) % 3)
    held_out = scorer.prepare(torch.arange(5), [torch.tensor([i]) for i in range(5)])
    scores = scorer.score(lambda some: some, held_out, (4, 2))
    torch.testing.assert_close(scores[:, :, 0], scorer.score(lambda some: some, held_out))
    torch.testing.assert_close(
        scores[:, :, 1], scorer.score(lambda some: F.normalize(some[:, :2], dim=1), held_out)
    )
    assert prefix(lambda some: some, 1)(torch.tensor([[-3.0, 9.0]])).tolist() == [[-1.0]]
