"""Codes of 1 bit that float32 decides are those of exact sums, whatever the rows."""

import numpy as np
import pytest

from querykey.runtime import forward
from querykey.runtime.codes import Code
from querykey.runtime.forward import LoadedAdapter
from querykey.runtime.grid import grid_matrix
from querykey.runtime.signs import decide, fold_signs

RNG = np.random.default_rng(0)
WIDTH, DIM = 96, 16


def code_of(rotation, threshold):
    tensors = {"rotation": rotation, "threshold": threshold, "scale": np.ones(DIM)}
    return Code(DIM, 1, {name: np.asarray(tensor, "f4") for name, tensor in tensors.items()})


def weight_of(kind):
    weight = RNG.standard_normal((DIM, WIDTH))
    match kind:
        case "orthogonal":
            weight = np.linalg.qr(weight.T)[0].T
        case "decaying":
            weight *= np.logspace(0, -4, DIM)[:, None]
        case "positive":  # every partial sum is far larger than the sum's differences
            weight = np.abs(weight) + 3
    return weight.astype("f4")


TURNED = np.linalg.qr(RNG.standard_normal((DIM, DIM)))[0]
PARTS = {
    "plain": ("random", 0, TURNED, 0),
    "centred": ("orthogonal", 0.1, TURNED, 0.1),
    "decaying": ("decaying", 1e-3, TURNED, 0.02),
    "positive": ("positive", 1, TURNED, 0.3),
    "far": ("orthogonal", 30, TURNED, 0.9),
    "stretched": ("random", 0.1, TURNED * 1.002, 0.1),
    "no rotation": ("random", 0.1, TURNED * 1.5 + 0.2, 0.1),
}


def made(name):
    kind, bias, rotation, threshold = PARTS[name]
    bias, threshold = (size * RNG.standard_normal(DIM).astype("f4") for size in (bias, threshold))
    code = code_of(rotation, threshold)
    return LoadedAdapter({"weight": weight_of(kind), "bias": bias}, codes={(DIM, 1): code}), code


def rows_near(adapter, code, count):
    """Rows with one number at its threshold, up to what float32 resolves: most bits there are rounding."""
    weight, bias = adapter._weight.astype("f8"), adapter._bias.astype("f8")
    rotation, threshold = (code.tensors[one].astype("f8") for one in ("rotation", "threshold"))
    rows = RNG.standard_normal((count, WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    back = np.linalg.pinv(rotation @ weight)
    for number, axis in enumerate(RNG.integers(0, DIM, count)):
        for _ in range(8):  # the row's length and the threshold's share of it change a little each time
            row = rows[number] / np.linalg.norm(rows[number])
            adapted = weight @ row + bias
            apart = rotation[axis] @ adapted - threshold[axis] * np.linalg.norm(adapted)
            rows[number] = row - back[:, axis] * apart
    return (rows * 10.0 ** RNG.uniform(-6, 6, (count, 1))).astype("f4")


def folded(adapter, code):
    return fold_signs(grid_matrix(adapter._weight), adapter._bias, code)


@pytest.mark.parametrize("name", PARTS)
def test_what_float32_decides_are_the_bits_of_exact_sums(name):
    adapter, code = made(name)
    near, rows = rows_near(adapter, code, 400), RNG.standard_normal((400, WIDTH)).astype("f4")
    for given in (near, rows, np.abs(rows) + 5, np.sign(rows), rows * 10.0 ** RNG.uniform(-40, 36, (400, 1))):
        ready = given.astype("f4")
        packed, certain = decide(folded(adapter, code), ready)
        np.testing.assert_array_equal(packed[certain], adapter.quantize(ready, bits=1)[certain])
        if given is rows:
            assert certain.mean() >= {"stretched": 0.3, "no rotation": 0}.get(name, 0.8)


def test_rows_at_a_threshold_are_not_decided_and_float32_alone_would_be_wrong():
    adapter, code = made("centred")
    near, signs = rows_near(adapter, code, 400), folded(adapter, code)
    assert decide(signs, near)[1].mean() < 0.05
    careless, certain = decide(signs._replace(of_row=0.0, of_adapted=0.0), near)
    assert certain.mean() > 0.9
    assert (careless != adapter.quantize(near, bits=1)).any(axis=1).mean() > 0.05


def test_rows_without_a_length_are_never_decided():
    adapter, code = made("plain")
    rows = RNG.standard_normal((6, WIDTH)).astype("f4")
    rows[0], rows[1, 3], rows[2, 3] = 0, np.nan, np.inf
    rows[3:5] *= np.float32([[1e-20], [1e20]])
    assert decide(folded(adapter, code), rows)[1].tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["plain", "far"])
def test_many_rows_have_the_codes_of_single_ones(name, threads, monkeypatch):
    """Where float32 decides most rows of the first block, and where it decides none."""
    adapter, code = made(name)
    far = RNG.standard_normal((1600, WIDTH)).astype("f4")
    rows = np.concatenate([far[:600], rows_near(adapter, code, 500), far[600:]])
    codes = adapter.quantize(rows, bits=1, threads=threads)
    monkeypatch.setattr(forward, "FOLDED_ROWS", len(rows) + 1)
    np.testing.assert_array_equal(codes, adapter.quantize(rows, bits=1))
    np.testing.assert_array_equal(codes[::-1], adapter.quantize(rows[::-1], bits=1))


def test_float32_decides_nothing_after_a_first_block_at_the_thresholds(monkeypatch):
    adapter, code = made("centred")
    rows = np.concatenate([rows_near(adapter, code, 600), RNG.standard_normal((1500, WIDTH)).astype("f4")])
    calls = []
    monkeypatch.setattr(forward, "decide", lambda *given: calls.append(1) or decide(*given))
    codes = adapter.quantize(rows, bits=1)
    assert len(calls) == 1
    np.testing.assert_array_equal(codes[-1], adapter.quantize(rows[-1], bits=1))
    adapter.quantize(rows[::-1], bits=1)
    assert len(calls) == 1 + 5


def test_float32_decides_bits_of_a_small_size_of_a_wide_layer(monkeypatch):
    """The product of a prefix is small, though that of the whole layer is not; the codes are single rows'."""
    tensors = {"weight": RNG.standard_normal((400, 400)).astype("f4"), "bias": np.zeros(400, "f4")}
    code = code_of(TURNED, np.zeros(DIM))
    adapter = LoadedAdapter(tensors, dims=(400, DIM), codes={(DIM, 1): code})
    rows, shares = RNG.standard_normal((2_048, 400)).astype("f4"), []

    def watched(*given):
        packed, certain = decide(*given)
        shares.append(certain.mean())
        return packed, certain

    monkeypatch.setattr(forward, "decide", watched)
    codes = adapter.quantize(rows, dim=DIM, bits=1)
    assert len(shares) == 4
    assert min(shares) > 0.9
    for number in range(0, len(rows), 97):
        np.testing.assert_array_equal(codes[number], adapter.quantize(rows[number], dim=DIM, bits=1))
