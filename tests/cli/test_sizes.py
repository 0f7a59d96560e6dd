"""Sizes and codes on the command line: adapt makes them, transform writes them, size says which to take."""

import json
import sys

import numpy as np
import pytest
import torch
from cli.conftest import clusters

from querykey import Adapter, Features
from querykey.runs.search_times import search_times


@pytest.fixture(scope="module")
def sized(querykey, tmp_path_factory):
    """A run of two sizes with codes, and rows for it as .npy and as .npz."""
    folder = tmp_path_factory.mktemp("sized")
    X, y = clusters(160, 1, width=20)
    np.savez(folder / "train.npz", X=X, y=y)
    np.save(folder / "new.npy", X[:30])
    np.savez(folder / "new.npz", X=X[:30])
    made = querykey(
        "adapt", folder / "train.npz", "--out", folder / "run", "--labels", "y", "--dims", "16,8",
        "--bits", "8,1", "--set", "steps=0", "--set", "batch_size=32",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert f"6 sizes and precisions: querykey size {folder / 'run'}" in made.flat
    return folder


@pytest.mark.parametrize("given", ["new.npy", "new.npz"])
@pytest.mark.parametrize(
    ("dim", "bits", "words"),
    [
        (8, None, "30 rows of 8 numbers, float32, length 1"),
        (None, 8, "30 codes of 16 numbers, int8, 16 bytes each"),
        (8, 8, "30 codes of 8 numbers, int8, 8 bytes each"),
        (16, 1, "30 codes of 16 bits, 2 bytes each, highest bit first"),
        (8, 1, "30 codes of 8 bits, 1 byte each, highest bit first"),
    ],
)
def test_transform_writes_each_size_and_code(querykey, sized, given, dim, bits, words, tmp_path):
    """Through NumPy alone (.npy) and through the estimator (.npz): the same codes."""
    out = tmp_path / "out.npy"
    options = [*(("--dim", dim) if dim else ()), *(("--bits", bits) if bits else ())]
    done = querykey("transform", sized / "run", sized / given, "--out", out, *options)
    assert done.code == 0, done.err
    assert words in done.flat
    adapter, X = Adapter.load(sized / "run"), np.load(sized / "new.npy")
    if bits is None:
        np.testing.assert_allclose(np.load(out), adapter.transform(X, dim=dim), atol=1e-6)
    else:
        np.testing.assert_array_equal(np.load(out), adapter.quantize(X, dim=dim, bits=bits))


def test_codes_are_written_as_safetensors_too(querykey, sized, tmp_path):
    from safetensors.numpy import load_file

    out = tmp_path / "out.safetensors"
    assert querykey("transform", sized / "run", sized / "new.npy", "--out", out, "--bits", 1).code == 0
    want = Adapter.load(sized / "run").quantize(np.load(sized / "new.npy"), bits=1)
    np.testing.assert_array_equal(load_file(out)["Z"], want)


@pytest.mark.parametrize("given", ["new.npy", "new.npz"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dim", 12), "this adapter has the sizes 16, 8; got dim=12; fit it again with this size"),
        (("--bits", 4), "bits must be 8 or 1, got 4; without bits rows are float32"),
        (("--bits", 8, "--queries"), "--bits makes codes of documents; queries stay float"),
    ],
)
def test_what_a_run_does_not_have_is_refused(querykey, sized, given, options, message, tmp_path):
    out = tmp_path / "out.npy"
    done = querykey("transform", sized / "run", sized / given, "--out", out, *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dim", "bits"), [(8, None), (8, 8), (16, 1)])
def test_search_among_rows_of_a_size_and_among_codes(querykey, sized, dim, bits):
    options = ["--dim", dim, *(("--bits", bits) if bits else ())]
    shown = querykey("search", sized / "run", sized / "new.npz", "--query", "3", "-k", 4, *options)
    assert shown.code == 0, shown.err
    adapter, X = Adapter.load(sized / "run"), np.load(sized / "new.npy")
    queries = adapter.transform(X[3:4], dim=dim)
    stored = adapter.transform(X, dim=dim)
    if bits:
        stored = adapter.code(dim=dim, bits=bits).decode(adapter.quantize(X, dim=dim, bits=bits))
    scores = (queries @ stored.T)[0]
    scores[3] = -1  # the item itself
    after = shown.out.partition("after: through the adapter")[2]
    rows = [line.split() for line in after.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    assert len(rows) == 4
    for row, want in zip(rows, np.sort(scores)[::-1], strict=False):
        assert f"{want:.3f}" in row


def test_size_lists_every_point_with_its_interval_and_marks_the_recommended_one(querykey, sized):
    shown = querykey("size", sized / "run")
    assert shown.code == 0, shown.err
    assert max(map(len, shown.out.splitlines())) <= 80
    frontier = json.loads((sized / "run" / "adapter.json").read_text())["frontier"]
    names = {32: "float", 8: "int8", 1: "1bit"}
    rows = [line.replace("1 bit", "1bit").split() for line in shown.out.splitlines()]
    for point in frontier:
        start = [str(point["dim"]), names[point["bits"]], str(point["bytes"]), f"{point['quality']:.3f}"]
        (row,) = [row for row in rows if row[:4] == start]
        assert row[4:6] == [f"[{point['low']:.3f},", f"{point['high']:.3f}]"]
        assert (row[-1] == "<-") == point["recommended"]
    assert "R@1" in shown.out


@pytest.mark.parametrize(
    ("options", "most", "call"),
    [
        (("--under", "8B"), 8, "adapter.quantize(X, dim="),
        (("--under", "64"), 64, "adapter."),
        (("--keep", "0"), 1, "1 byte a vector: adapter.quantize(X, dim=8, bits=1)"),
        (("--keep", "100%"), 64, "adapter."),
    ],
)
def test_size_says_what_to_call_for_a_budget_and_for_a_quality(querykey, sized, options, most, call):
    shown = querykey("size", sized / "run", *options)
    assert shown.code == 0, shown.err
    assert call in shown.out
    last = shown.out.strip().splitlines()[-1]
    assert int(last.split()[0]) <= most


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--under", "64B", "--keep", ".9"), "--under and --keep are two rules; give one of them"),
        (("--under", "0.5B"), "no size takes at most 0 bytes; the smallest takes 1"),
        (("--under", "much"), "bytes are written as 64, 64B or 1.5kB; got 'much'"),
        (("--keep", "1.5"), "a share is written as .98 or 98%; got '1.5'"),
    ],
)
def test_size_refuses_rules_that_no_point_fulfils(querykey, sized, options, message):
    shown = querykey("size", sized / "run", *options)
    assert (shown.code, shown.out) == (2, "")
    assert shown.err.startswith(f"error: {message}")


def test_size_of_what_has_none(querykey, labelled_run, tmp_path):
    none = querykey("size", tmp_path / "none")
    assert none.code == 2
    assert "no run here; make one with querykey adapt FEATURES --out" in none.err
    one = querykey("size", labelled_run)
    assert one.code == 2
    assert "has one size and no codes; fit it again with --dims 256,128,64 or --bits 8,1" in one.err
    (tmp_path / "adapter.json").write_text('{"frontier": [{"dim": 3}]}')
    damaged = querykey("size", tmp_path)
    assert damaged.code == 2
    assert "adapter.json is damaged" in damaged.err


def test_size_without_held_out_rows_lists_bytes_and_recommends_nothing(querykey, tmp_path):
    X, _ = clusters(60, 1)
    Adapter(dims=(8, 4), bits=[8], validation_fraction=0.0, steps=0, batch_size=32).fit(X).save(
        tmp_path / "run"
    )
    shown = querykey("size", tmp_path / "run")
    assert shown.code == 0, shown.err
    assert "this run was fitted without held-out queries" in shown.flat
    assert "<-" not in shown.out
    under = querykey("size", tmp_path / "run", "--under", "8B")
    assert under.code == 2
    assert "fit it again with validation_fraction above 0" in under.err


def test_size_times_the_search_of_every_point_and_of_faiss_s_indexes(querykey, sized, tmp_path, monkeypatch):
    out = tmp_path / "times.json"
    shown = querykey("size", sized / "run", "--time", sized / "train.npz", "--out", out)
    assert shown.code == 0, shown.err
    assert max(map(len, shown.out.splitlines())) <= 80
    record = json.loads(out.read_text())
    assert (record["format"], record["rows"], record["queries"], record["k"]) == (
        "querykey search times", 60, 100, 10,
    )  # fmt: skip
    exact = [one for one in record["times"] if one["index"] == "exact"]
    assert [(one["dim"], one["stored"], one["bytes"]) for one in exact] == [
        (16, "float", 64), (16, "int8", 16), (16, "1 bit", 2), (8, "float", 32), (8, "int8", 8),
        (8, "1 bit", 1),
    ]  # fmt: skip
    assert exact[0]["found"] == 1
    assert all(one["milliseconds"] > 0 and 0 <= one["found"] <= 1 for one in record["times"])
    monkeypatch.setitem(sys.modules, "faiss", None)
    without = querykey("size", sized / "run", "--time", sized / "train.npz")
    assert without.code == 0, without.err
    assert "faiss" not in without.out


def test_faiss_s_indexes_find_most_of_what_exact_search_finds():
    pytest.importorskip("faiss")
    X, y = clusters(1300, 1, width=16)
    adapter = Adapter(dims=(16,), bits=[8], steps=0, batch_size=32).fit(X[:200], y[:200])
    names = [str(row) for row in range(len(X))]
    features = Features(torch.from_numpy(X), names, None, (), names, "")
    times = search_times(adapter, features, on="rows")["times"]
    assert [(one["index"], one["stored"], one["bytes"]) for one in times] == [
        ("exact", "float", 64), ("exact", "int8", 16), ("faiss HNSW", "float", 64 + 256),
        ("faiss IVF-PQ", "PQ", 4 + 8),
    ]  # fmt: skip
    found = [one["found"] for one in times]
    assert found[0] == 1
    assert min(found[1:3]) > 0.9
    assert found[3] > 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "t.json"), "--out is for the search times; give --time FEATURES too"),
        (("--time", "x.npz", "--keep", ".9"), "--time is without a rule; leave out --under and --keep"),
        (("--time", "none.npz"), "there is nothing at none.npz"),
    ],
)
def test_options_of_the_times_that_do_not_fit_are_refused(querykey, sized, options, message):
    shown = querykey("size", sized / "run", *options)
    assert (shown.code, shown.out) == (2, "")
    assert message in shown.err


def test_too_few_rows_cannot_be_timed(querykey, sized, tmp_path):
    np.savez(tmp_path / "few.npz", X=clusters(9, 1, width=20)[0])
    shown = querykey("size", sized / "run", "--time", tmp_path / "few.npz")
    assert shown.code == 2
    assert "9 rows are too few to time a search; 20 are needed" in shown.err
