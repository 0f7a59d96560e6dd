"""The feature store on disk, and features of arrays."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen_toys import images, text_source

from querykey.data.items import Source
from querykey.errors import MissingPathError, OutputExistsError, ShapeError, SourceError, StoreError
from querykey.features.features import (
    Features,
    features_from_array,
    features_of_source,
    read_features,
    write_features,
)

X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


@pytest.fixture
def store(tmp_path):
    features = features_from_array(X, y=["b", "a", "b", None, "a", "b", "a"], model_key="k" * 64)
    queries = features_from_array(X[:2] + 1, ids=["q1", "q2"])
    paired = Features(
        vectors=features.vectors, ids=features.ids, labels=features.labels, label_names=features.label_names,
        previews=[f"line {row}" for row in range(7)], model_key=features.model_key, queries=queries,
        pairs=torch.tensor([[0, 3, 1], [1, 6, 2]]),
    )  # fmt: skip
    return write_features(paired, tmp_path / "store")


def test_what_is_written_is_read(store):
    features = read_features(store, verify=True)
    assert np.array_equal(features.vectors.numpy(), X)
    assert (len(features), features.dim) == (7, 3)
    assert list(features.ids) == [str(row) for row in range(7)]
    assert features.labels.tolist() == [1, 0, 1, -1, 0, 1, 0]
    assert features.label_names == ("a", "b")
    assert features.previews[-1] == "line 6"
    assert list(features.previews[1:3]) == ["line 1", "line 2"]
    assert features.model_key == "k" * 64
    assert list(features.queries.ids) == ["q1", "q2"]
    assert features.queries.labels is None
    assert features.pairs.tolist() == [[0, 3, 1], [1, 6, 2]]
    assert features.meta["rows"] == 7
    assert features.meta["versions"]["torch"]


def test_a_store_that_was_read_can_be_written_again(store, tmp_path):
    again = write_features(read_features(store), tmp_path / "again")
    one, other = read_features(store), read_features(again, verify=True)
    assert torch.equal(one.vectors, other.vectors)
    assert list(one.previews) == list(other.previews)
    assert (one.model_key, one.pairs.tolist()) == (other.model_key, other.pairs.tolist())


def test_nothing_is_written_over(store):
    with pytest.raises(OutputExistsError, match="exists already"):
        write_features(features_from_array(X), store)
    assert len(read_features(store, verify=True)) == 7


def test_half_the_bytes(tmp_path):
    write_features(features_from_array(X.astype(np.float16)), tmp_path / "half")
    features = read_features(tmp_path / "half")
    assert features.vectors.dtype == torch.float16
    assert np.array_equal(features.vectors.numpy(), X.astype(np.float16))


def test_writing_to_features_changes_no_file(store):
    features = read_features(store)
    features.vectors[0] = 9.0
    assert np.array_equal(read_features(store, verify=True).vectors.numpy(), X)


def test_numpy_takes_features_without_a_copy(store):
    features = read_features(store)
    array = np.asarray(features)
    assert np.shares_memory(array, features.vectors.numpy())
    assert np.asarray(features, dtype=np.float64).dtype == np.float64
    assert not np.shares_memory(np.array(features, copy=True), array)
    with pytest.raises(ValueError, match="without a copy"):
        features.__array__(dtype=np.float64, copy=False)


def _flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["vectors.npy", "items.parquet", "pairs.parquet", "queries/vectors.npy"])
def test_a_byte_that_changed_is_found_when_asked(store, name):
    _flip(store / name, -5)
    with pytest.raises(StoreError, match="its bytes were changed after it was written; make it again"):
        read_features(store, verify=True)


@pytest.mark.parametrize("name", ["vectors.npy", "items.parquet", "pairs.parquet", "queries/items.parquet"])
def test_a_size_that_changed_is_always_found(store, name):
    with (store / name).open("ab") as stream:
        stream.write(b"0")
    with pytest.raises(StoreError, match=r"has [0-9]+ bytes, [0-9]+ were written"):
        read_features(store)
    (store / name).unlink()
    with pytest.raises(StoreError, match="is missing"):
        read_features(store)


def test_a_header_that_changed_is_always_found(store):
    path = store / "vectors.npy"
    path.write_bytes(path.read_bytes().replace(b"(7, 3)", b"(3, 7)"))
    with pytest.raises(StoreError, match=r"contains float32 \[3, 7\], not float32 \[7, 3\]"):
        read_features(store)


def test_a_meta_file_that_changed_is_always_found(store):
    path = store / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "model": {"key": "other"}}))
    with pytest.raises(StoreError, match=r"meta\.json was changed after it was written"):
        read_features(store)
    path.write_text(json.dumps({**meta, "version": 99}))
    with pytest.raises(StoreError, match="is a store of version 99; this querykey reads up to 1"):
        read_features(store)


def test_vectors_from_a_file(tmp_path):
    np.save(tmp_path / "X.npy", X)
    features = read_features(tmp_path / "X.npy")
    assert np.array_equal(np.asarray(features), X)
    assert (features.model_key, features.labels, features.queries) == ("", None, None)
    np.savez(tmp_path / "X.npz", X=X.astype(np.float64), y=np.arange(7))
    assert read_features(tmp_path / "X.npz").vectors.dtype == torch.float32
    assert read_features(tmp_path / "X.npz").labels.tolist() == list(range(7))


def test_what_holds_no_vectors(tmp_path):
    with pytest.raises(MissingPathError):
        read_features(tmp_path / "none")
    (tmp_path / "photos").mkdir()
    images(1)[0].save(tmp_path / "photos" / "a.png")
    with pytest.raises(
        SourceError, match="contains images, not vectors; compute features first, with querykey embed"
    ):
        read_features(tmp_path / "photos")
    with pytest.raises(SourceError, match=r"texts\.csv contains texts, not vectors"):
        features_of_source(text_source(["a"]))


def test_a_source_of_vectors_keeps_its_pairs():
    queries = Source("q", "vector", X[:2], ["a", "b"], None, (), "0")
    pairs = np.array([[0, 1, 1]])
    source = Source("d", "vector", X, list("abcdefg"), np.zeros(7, np.int64), ("x",), "1", queries, pairs)
    features = features_of_source(source)
    assert np.shares_memory(features.vectors.numpy(), X)
    assert (features.queries.ids, features.pairs.tolist()) == (["a", "b"], [[0, 1, 1]])
    assert features.labels.tolist() == [0] * 7


def test_features_of_arrays_of_every_kind():
    assert features_from_array(torch.from_numpy(X)).vectors.data_ptr() == torch.from_numpy(X).data_ptr()
    assert features_from_array(torch.ones(2, 3, dtype=torch.bfloat16)).vectors.dtype == torch.float32
    assert features_from_array(torch.ones(2, 3, requires_grad=True)).vectors.requires_grad is False
    assert features_from_array(np.broadcast_to(np.float32(1), (2, 3))).vectors.shape == (2, 3)
    assert features_from_array(X, y=torch.tensor([0, 1, 2, 0, 1, -1, 2])).labels.tolist()[-2] == -1
    assert features_from_array([[1, 2], [3, 4]]).vectors.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("bad", [[1.0, 2.0], np.zeros((0, 3)), np.zeros((3, 0)), [["a", "b"]]])
def test_features_are_numbers_in_rows(bad):
    with pytest.raises(ShapeError, match=r"features are numbers \[n, dim\]"):
        features_from_array(bad)


def test_labels_and_ids_are_one_a_row():
    with pytest.raises(ShapeError, match="y has 2 entries for 7 rows"):
        features_from_array(X, y=[0, 1])
    with pytest.raises(ShapeError, match="ids has 1 entries for 7 rows"):
        features_from_array(X, ids=["a"])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_vectors_are_mapped_not_read(store, tmp_path):
    np.save(tmp_path / "X.npy", X)
    held = [read_features(store), read_features(tmp_path / "X.npy")]
    maps = Path("/proc/self/maps").read_text()
    assert str(store / "vectors.npy") in maps
    assert str(tmp_path / "X.npy") in maps
    assert len(held) == 2
