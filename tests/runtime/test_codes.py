"""Codes: the same bits in any batch, oracles in plain loops, and the order of bits that indexes expect."""

import math
from fractions import Fraction

import numpy as np
import pytest

from querykey.errors import RangeError, ShapeError
from querykey.runtime import hamming as hamming_module
from querykey.runtime.codes import (
    Code,
    code_bytes,
    search_codes,
)
from querykey.runtime.forward import LoadedAdapter
from querykey.runtime.frontier import best_under, fewest_bytes, marked, parse_bytes, parse_share
from querykey.runtime.grid import grid_matrix, grid_product, grid_rows
from querykey.runtime.hamming import hamming, nearest_by_hamming

RNG = np.random.default_rng(0)
ROTATION = np.linalg.qr(RNG.standard_normal((64, 64)))[0].astype("f4")
EIGHT = Code(64, 8, {"scale": np.array([0.003], dtype="f4")})
ONE = Code(
    64, 1,
    {"rotation": ROTATION, "threshold": RNG.normal(0, 0.02, 64).astype("f4"),
     "scale": RNG.uniform(0.05, 0.15, 64).astype("f4")},
)  # fmt: skip
Z = RNG.standard_normal((300, 64)).astype("f4")
Z /= np.linalg.norm(Z, axis=1, keepdims=True)


def adapter(kind="linear", width=48, side="both"):
    draw = np.random.default_rng(1)
    shapes = {"weight": (64, width), "bias": (64,)}
    if kind == "two_layer":
        shapes |= {"hidden.weight": (40, width), "hidden.bias": (40,), "out.weight": (64, 40)}
    tensors = {name: draw.standard_normal(shape).astype("f4") / 4 for name, shape in shapes.items()}
    return LoadedAdapter(tensors, kind=kind, side=side, codes={(64, 8): EIGHT, (64, 1): ONE})


@pytest.mark.parametrize(
    ("kind", "width", "side"),
    [("linear", 48, "both"), ("residual", 64, "both"), ("two_layer", 48, "both"), ("linear", 64, "query")],
)
@pytest.mark.parametrize("bits", [8, 1])
def test_a_row_has_the_code_that_it_has_in_any_batch(kind, width, side, bits):
    """For every bit, in batches of other sizes and orders, whatever the lengths of the rows."""
    rows = (RNG.standard_normal((257, width)) * 10.0 ** RNG.uniform(-12, 12, (257, 1))).astype("f4")
    made = adapter(kind, width, side)
    codes = made.quantize(rows, bits=bits)
    np.testing.assert_array_equal(codes, np.stack([made.quantize(row, bits=bits) for row in rows]))
    np.testing.assert_array_equal(codes[::-1], made.quantize(rows[::-1], bits=bits))
    np.testing.assert_array_equal(codes[50:60], made.quantize(np.asfortranarray(rows[50:60]), bits=bits))


def test_rows_beyond_float32_have_codes_too():
    rows, made = RNG.standard_normal((5, 48)), adapter()
    for bits in (8, 1):
        want = made.quantize(rows, bits=bits)
        for power in (-200, 200):
            got = made.quantize(rows * 10.0**power, bits=bits)
            assert np.mean(got != want) < 0.02  # the division by the largest number may round


def test_a_product_on_the_grid_is_exact():
    """No order of summation can show, since no sum is rounded: those of fractions are the same."""
    rows = (RNG.standard_normal((3, 200)) * [[1e-9], [1], [1e9]]).astype("f4")
    matrix = (RNG.standard_normal((2, 200)) * 7).astype("f4")
    grid, (whole, scale) = grid_rows(rows), grid_matrix(matrix)
    for row in range(3):
        for column in range(2):
            terms = zip(grid.whole[row].tolist(), whole[column].tolist(), strict=True)
            exact = sum((Fraction(a) * Fraction(b) for a, b in terms), Fraction(0))
            got = float((grid.whole @ whole.T)[row, column])
            assert Fraction(got) == exact
            want = float(rows[row].astype("f8") @ matrix[column].astype("f8"))
            unit = want / np.linalg.norm(rows[row].astype("f8"))
            assert grid_product(grid, (whole, scale))[row, column] == pytest.approx(unit, abs=1e-4)
    assert np.abs(grid.whole).max() <= 2**20
    np.testing.assert_allclose(
        grid.whole * grid.step / np.abs(rows).max(axis=1, keepdims=True),
        rows / np.abs(rows).max(axis=1, keepdims=True), rtol=0, atol=2e-6,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["linear", "two_layer"])
def test_codes_are_those_of_the_transformed_rows(kind):
    """But for numbers that lie on the edge of two codes, where float32 decides by its last bit."""
    made = adapter(kind)
    rows = RNG.standard_normal((200, 48)).astype("f4")
    z = made.transform(rows)
    apart = np.abs(made.quantize(rows).astype(int) - EIGHT.encode(z).astype(int))
    assert apart.max() <= 1
    assert apart.mean() < 1e-3
    assert (made.quantize(rows, bits=1) != ONE.encode(z)).mean() < 1e-3


def test_codes_are_those_of_plain_loops():
    for row, got8, got1 in zip(Z[:5], EIGHT.encode(Z[:5]), ONE.encode(Z[:5]), strict=True):
        for place in range(64):
            value = float(row[place]) / float(EIGHT.tensors["scale"][0])
            assert got8[place] == max(-127, min(127, round(value)))
        bits = []
        for axis in range(64):
            turned = sum(float(ROTATION[axis, j]) * float(row[j]) for j in range(64))
            bits.append(int(turned > ONE.tensors["threshold"][axis]))
        packed = [sum(bits[8 * i + j] << (7 - j) for j in range(8)) for i in range(8)]
        assert got1.tolist() == packed


@pytest.mark.parametrize("code", [EIGHT, ONE])
def test_scores_are_dot_products_with_what_codes_stand_for(code):
    codes = code.encode(Z)
    rows = code.decode(codes)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(code.scores(Z[:9], codes), Z[:9] @ rows.T, atol=1e-5)
    alone = code.decode(codes[:1])
    np.testing.assert_allclose(alone, rows[:1], atol=1e-6)


def test_a_decoded_row_is_that_of_the_formula():
    (row,) = ONE.decode(ONE.encode(Z[:1]))
    signs = np.unpackbits(ONE.encode(Z[:1])[0]) * 2.0 - 1
    want = ROTATION.T @ (ONE.tensors["threshold"] + ONE.tensors["scale"] * signs)
    np.testing.assert_allclose(row, want / np.linalg.norm(want), atol=1e-6)


def test_rescoring_finds_what_scoring_all_finds():
    codes = ONE.encode(Z)
    scores, rows = search_codes(ONE, Z[:20], codes, 5, rescore=0)
    every = ONE.scores(Z[:20], codes)
    np.testing.assert_array_equal(rows, np.argsort(-every, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(scores, np.take_along_axis(every, rows, axis=1), atol=1e-6)
    some = search_codes(ONE, Z[:20], codes, 5, rescore=10)[1]
    found = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(some, rows, strict=True)])
    assert found > 0.9
    assert (some[:, 0] == np.arange(20)).all()


def test_hamming_counts_the_bits_that_differ():
    a, b = ONE.encode(Z[:4]), ONE.encode(Z)
    want = [[(int.from_bytes(x) ^ int.from_bytes(y)).bit_count() for y in b] for x in a]
    np.testing.assert_array_equal(hamming(a, b), want)
    np.testing.assert_array_equal(
        hamming(a[:, :3], b[:, :3]),
        [[(int.from_bytes(x[:3]) ^ int.from_bytes(y[:3])).bit_count() for y in b] for x in a],
    )


@pytest.mark.parametrize("width", [1, 8, 24, 25, 8300])
def test_opposite_codes_differ_in_every_bit(width):
    """Counts of words are added in 8 bits and in 16: none of them may run over."""
    codes = np.array([[0] * width, [255] * width], dtype=np.uint8)
    codes.flags.writeable = False  # as a memory-mapped file's are
    np.testing.assert_array_equal(hamming(codes, codes), [[0, 8 * width], [8 * width, 0]])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("block", [7, 64, 8192])
@pytest.mark.parametrize("k", [1, 7, 300])
def test_the_nearest_by_hamming_are_those_of_a_stable_sort(k, block, threads, monkeypatch):
    monkeypatch.setattr(hamming_module, "BLOCK", block)
    monkeypatch.setattr(hamming_module, "WORDS", 4)
    monkeypatch.setattr(hamming_module, "LEAST", 1)
    codes = RNG.integers(0, 4, (300, 3), dtype=np.uint8)  # few bits: many ties
    codes = (
        codes[np.argsort(-codes.sum(axis=1))] if k == 7 else codes
    )  # each block may be nearer than the last
    queries = RNG.integers(0, 4, (11, 3), dtype=np.uint8)
    differ = hamming(queries, codes)
    want = np.argsort(differ, axis=1, kind="stable")[:, :k]
    given = codes.copy()
    counts, rows = nearest_by_hamming(queries, codes, k, threads=threads)
    np.testing.assert_array_equal(codes, given)
    np.testing.assert_array_equal(rows, want)
    np.testing.assert_array_equal(counts, np.take_along_axis(differ, want, axis=1))


def test_a_row_of_zeros_and_no_rows_have_codes():
    assert not EIGHT.encode(np.zeros((1, 64), dtype="f4")).any()
    assert adapter().quantize(np.zeros((0, 48)), bits=1).shape == (0, 8)
    assert ONE.encode(np.zeros((1, 64), dtype="f4")).shape == (1, 8)


def test_what_does_not_fit_is_refused():
    with pytest.raises(RangeError, match="bits must be 8 or 1, got 4"):
        Code(64, 4, {})
    with pytest.raises(RangeError, match="multiple of 8; got 12"):
        Code(12, 1, {})
    with pytest.raises(ShapeError, match="a code of 64 numbers at 8 bits has"):
        Code(64, 8, {"scale": np.ones(2, dtype="f4")})
    with pytest.raises(ShapeError, match=r"rows \[rows, 64\], got \[300, 10\]"):
        EIGHT.encode(Z[:, :10])
    with pytest.raises(RangeError, match="bits must be 8 or 1, got 2"):
        adapter().quantize(np.ones(48), bits=2)
    with pytest.raises(RangeError, match="has the sizes 64; got dim=32"):
        adapter().quantize(np.ones(48), dim=32)
    with pytest.raises(RangeError, match="k must be from 1 to the 300 codes"):
        search_codes(EIGHT, Z[:1], EIGHT.encode(Z), 301)


def test_faiss_reads_packed_bits_in_this_order():
    faiss = pytest.importorskip("faiss")
    codes = ONE.encode(Z)
    index = faiss.IndexBinaryFlat(64)
    index.add(codes)
    np.testing.assert_array_equal(index.search(codes[:9], 300)[0], np.sort(hamming(codes[:9], codes), axis=1))
    # the first number is the highest bit of the first byte for numpy, the lowest for faiss's own packing of
    # reals: distances do not depend on it, so that codes of one packing are never mixed with the other's
    signs = np.unpackbits(codes, axis=1).astype("f4") * 2 - 1
    np.testing.assert_array_equal((64 - signs[:9] @ signs.T) / 2, hamming(codes[:9], codes))


def test_faiss_keeps_codes_of_8_bits_as_they_are():
    faiss = pytest.importorskip("faiss")
    codes = EIGHT.encode(Z)
    index = faiss.IndexScalarQuantizer(
        64, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
    )
    index.add(codes.astype("f4"))
    asked = codes[:9].astype("f4")  # a query is cut to whole numbers too: it goes in as codes
    scores = asked @ codes.astype("f4").T
    np.testing.assert_array_equal(index.search(asked, 1)[0][:, 0], scores.max(axis=1))
    np.testing.assert_array_equal(
        faiss.vector_to_array(index.codes).reshape(300, 64), (codes.astype(int) + 128).astype("u1")
    )


def test_usearch_reads_packed_bits_and_int8_as_they_are():
    index = pytest.importorskip("usearch.index", reason="usearch is not installed")
    codes = ONE.encode(Z)
    bits = index.Index(ndim=64, metric=index.MetricKind.Hamming, dtype=index.ScalarKind.B1)
    bits.add(np.arange(300), codes)
    found = bits.search(codes[:9], 5, exact=True)
    np.testing.assert_array_equal(found.distances, np.sort(hamming(codes[:9], codes), axis=1)[:, :5])
    ints = index.Index(ndim=64, metric=index.MetricKind.IP, dtype=index.ScalarKind.I8)
    eight = EIGHT.encode(Z)
    ints.add(np.arange(300), eight)
    np.testing.assert_array_equal(np.stack([ints.get(key) for key in range(9)]), eight[:9])


def test_pgvector_writes_bits_in_this_order_and_rows_in_half_precision():
    pgvector = pytest.importorskip("pgvector", reason="pgvector is not installed")
    (code,) = ONE.encode(Z[:1])
    text = "".join(map(str, np.unpackbits(code)))
    assert pgvector.Bit(text).to_text() == text
    assert pgvector.Bit(code.tobytes()).to_text() == text
    np.testing.assert_array_equal(pgvector.HalfVector(Z[0]).to_numpy(), Z[0].astype(np.float16))


def test_turned_rows_have_the_codes_as_their_signs():
    """Qdrant takes float rows and sets a bit where a number is above 0 (lib/quantization of its source)."""
    turned = Z @ ONE.tensors["rotation"].T - ONE.tensors["threshold"]
    assert (np.packbits(turned > 0, axis=1) != ONE.encode(Z)).mean() < 1e-3
    # queries are turned and not centred: dot products keep their order
    asked = Z[:9] @ ONE.tensors["rotation"].T
    difference = asked @ turned.T - Z[:9] @ Z.T
    np.testing.assert_allclose(difference, difference[:, :1].repeat(300, axis=1), atol=1e-5)


def test_qdrant_takes_int8_codes_as_its_uint8():
    """Qdrant stores whole numbers from 0 to 255; a shift by 128 leaves Euclidean distances as they are."""
    qdrant = pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
    models, codes = qdrant.models, EIGHT.encode(Z)
    client = qdrant.QdrantClient(":memory:")
    vectors = models.VectorParams(size=64, distance=models.Distance.EUCLID, datatype=models.Datatype.UINT8)
    client.create_collection("codes", vectors_config=vectors)
    stored = (codes.astype(int) + 128).tolist()
    client.upsert("codes", [models.PointStruct(id=i, vector=row) for i, row in enumerate(stored)])
    (hit, *_) = client.query_points("codes", query=stored[7], limit=300, with_vectors=True).points
    assert (hit.id, hit.vector) == (7, stored[7])
    found = client.query_points("codes", query=stored[7], limit=300).points
    distances = np.linalg.norm(codes.astype(float) - codes[7], axis=1)
    np.testing.assert_allclose([one.score for one in found], np.sort(distances), rtol=1e-5)


def test_bytes_are_counted_and_parsed():
    assert [code_bytes(96, bits) for bits in (32, 8, 1)] == [384, 96, 12]
    assert [parse_bytes(text) for text in ("64", "64B", "1.5kB", "2 KiB")] == [64, 64, 1500, 2048]
    assert [parse_share(text) for text in (".98", "98%", "1")] == [0.98, 0.98, 1.0]


def point(dim, bits, quality):
    return {"dim": dim, "bits": bits, "bytes": code_bytes(dim, bits), "quality": quality, "metric": "R@1"}


def test_the_rules_choose_by_bytes_and_by_quality():
    frontier = [
        point(64, 32, 0.90),
        point(64, 8, 0.89),
        point(64, 1, 0.80),
        point(32, 32, 0.885),
        point(32, 8, 0.70),
    ]
    assert fewest_bytes(frontier) is frontier[1]
    assert fewest_bytes(frontier, 0.88) is frontier[2]
    assert fewest_bytes(frontier, 1.0) is frontier[0]
    assert best_under(frontier, 128) is frontier[1]
    assert best_under(frontier, 63) is frontier[2]
    assert [one["recommended"] for one in marked(frontier)] == [False, True, False, False, False]
    assert math.isclose(0.98 * 0.90, 0.882)
