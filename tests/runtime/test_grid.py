"""Sums on the grid, against those of Python's integers, and blocks of rows on threads."""

import time

import numpy as np
import pytest

from querykey.errors import DataError
from querykey.runtime.codes import Code
from querykey.runtime.forward import LoadedAdapter
from querykey.runtime.grid import grid_matrix, grid_product, grid_rows, is_small
from querykey.runtime.threads import default_threads, in_threads

RNG = np.random.default_rng(0)


def wholes_of_plain_loops(rows):
    """The integers of each row and the square of their length."""
    for row in rows.astype(object):
        peak = max(map(abs, row))
        exponent = int(np.frexp(float(peak))[1])
        yield [round(float(number) * 2.0 ** (20 - exponent)) for number in row]


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
def test_rows_are_rounded_as_in_plain_loops(dtype):
    """Whatever their layout and magnitude; in float64 where float32 has no such scale."""
    rows = (RNG.standard_normal((40, 12)) * 10.0 ** RNG.uniform(-3, 3, (40, 1))).astype(dtype)
    rows[3] = 0
    tiny = rows.astype("f4") * np.float32(1e-36)
    for given in (rows, np.asfortranarray(rows), rows[::2, ::-1], tiny):
        grid = grid_rows(given)
        assert grid.whole.flags.c_contiguous
        for row, whole, length in zip(wholes_of_plain_loops(given), grid.whole, grid.lengths, strict=True):
            assert whole.tolist() == row
            assert length == (np.sqrt(float(sum(number**2 for number in row))) or 1)
        np.testing.assert_allclose(grid.whole * grid.step, given.astype("f8"), rtol=0, atol=grid.step.max())


@pytest.mark.parametrize(("width", "out", "is_stacked"), [(384, 64, True), (384, 400, False), (5, 3, True)])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 67])
def test_a_product_is_that_of_integers(width, out, is_stacked, count):
    """In stacks of rows and without, with a last stack that is not full; a prefix has the same sums."""
    assert is_small(width, out) == is_stacked
    grid = grid_rows(RNG.standard_normal((count, width)).astype("f4"))
    matrix, scale = grid_matrix(RNG.standard_normal((out, width)).astype("f4"))
    exact = grid.whole.astype(np.int64) @ matrix.T.astype(np.int64)
    assert (np.abs(exact) < 2**53).all()
    want = exact.astype("f8") / (grid.lengths * scale)
    np.testing.assert_array_equal(grid_product(grid, (matrix, scale)), want)
    np.testing.assert_array_equal(grid_product(grid, (matrix[: out // 2], scale)), want[:, : out // 2])


def made():
    tensors = {"weight": RNG.standard_normal((16, 24)).astype("f4"), "bias": np.zeros(16, "f4")}
    return LoadedAdapter(tensors, codes={(16, 8): Code(16, 8, {"scale": np.full(1, 0.005, "f4")})})


def test_codes_are_the_same_on_any_number_of_threads():
    rows, adapter = RNG.standard_normal((2_000, 24)).astype("f4"), made()
    found = [adapter.quantize(rows, threads=count) for count in (None, 1, 3)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[0][-1], adapter.quantize(rows[-1]))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_that_is_not_finite_is_named_from_any_block(threads):
    rows = RNG.standard_normal((2_000, 24)).astype("f4")
    rows[1_400, 3], rows[1_900, 0] = -np.inf, np.nan
    message = "2 of 2000 rows hold NaN or infinity, the first of them row 1400"
    with pytest.raises(DataError, match=message):
        made().quantize(rows, threads=threads)


@pytest.mark.parametrize("given", ["", "3", "0", "2,1"])
def test_threads_are_those_of_the_environment_or_all_processors(given, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert default_threads() == 3 if given == "3" else default_threads() >= 1


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_error_of_a_block_ends_the_others(threads):
    begun = []

    def work(start):
        begun.append(start)
        if start == 5:
            raise KeyError(start)
        time.sleep(0.001)

    with pytest.raises(KeyError, match="5"):
        in_threads(work, range(300), threads)
    assert len(begun) < 300
