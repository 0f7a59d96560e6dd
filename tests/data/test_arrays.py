"""Vectors from files: mapped, checked, and never unpickled."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from querykey.data.readers.open import read_source, require_finite_rows
from querykey.errors import DataError, ShapeError, SourceError

X = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("dtype", ["<f4", "<f2", ">f4", "<f8", "|u1"])
def test_npy_keeps_its_numbers_and_torch_can_take_them(tmp_path, dtype):
    np.save(tmp_path / "x.npy", X.astype(dtype))
    source = read_source(tmp_path / "x.npy")
    assert source.kind == "vector"
    assert torch.from_numpy(source.items).tolist() == X.tolist()
    assert list(source.ids) == ["0", "1", "2", "3"]
    assert source.labels is None


def test_npy_and_stored_npz_and_safetensors_are_mapped_and_the_file_cannot_change(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "x.npz", X=X)
    save_file({"X": X}, tmp_path / "x.safetensors")
    for name in ("x.npy", "x.npz", "x.safetensors"):
        before = (tmp_path / name).read_bytes()
        items = read_source(tmp_path / name).items
        assert isinstance(items, np.memmap)
        assert items.tolist() == X.tolist()
        items[0] = -1
        items.flush()
        assert (tmp_path / name).read_bytes() == before


def test_fortran_order_is_read_right(tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(X))
    assert read_source(tmp_path / "x.npy").items.tolist() == X.tolist()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_x_and_y(tmp_path, save):
    save(tmp_path / "x.npz", X=X, y=np.array(["b", "a", "b", ""]), other=np.zeros(9))
    source = read_source(tmp_path / "x.npz")
    assert source.items.tolist() == X.tolist()
    assert source.label_names == ("a", "b")
    assert source.labels.tolist() == [1, 0, 1, -1]


def test_several_arrays_need_a_name(tmp_path):
    np.savez(tmp_path / "x.npz", left=X, right=X + 1, classes=np.array([5, 6, 5, 5]))
    save_file({"left": X, "right": X + 1}, tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match=r"several arrays \(left, right, classes\) .* as column"):
        read_source(tmp_path / "x.npz")
    with pytest.raises(SourceError, match=r"no array 'rihgt' \(nearest: 'right'\)"):
        read_source(tmp_path / "x.safetensors", column="rihgt")
    source = read_source(tmp_path / "x.npz", column="right", label_column="classes")
    assert source.items.tolist() == (X + 1).tolist()
    assert (source.labels.tolist(), source.label_names) == ([0, 1, 0, 0], ("5", "6"))
    other = read_source(tmp_path / "x.npz", column="left")
    assert other.fingerprint != source.fingerprint


def test_labels_of_another_length_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", X=X, y=np.zeros(3))
    with pytest.raises(ShapeError, match=r"the labels y have shape \[3\] for 4 vectors"):
        read_source(tmp_path / "x.npz")


def test_bfloat16_is_read_through_its_bits(tmp_path):
    save_torch_file({"X": torch.tensor([[1.5, -2.0, 0.25]]).bfloat16()}, tmp_path / "x.safetensors")
    source = read_source(tmp_path / "x.safetensors")
    assert source.items.dtype == np.float32
    assert source.items.tolist() == [[1.5, -2.0, 0.25]]


def test_pickled_objects_are_refused(tmp_path):
    rows = np.array([[1.0], [1.0, 2.0]], dtype=object)
    np.save(tmp_path / "x.npy", rows, allow_pickle=True)
    np.savez_compressed(tmp_path / "x.npz", X=rows)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(SourceError, match="pickled Python objects, which are never loaded"):
            read_source(tmp_path / name)
    (tmp_path / "x.pkl").write_bytes(b"")
    with pytest.raises(SourceError, match="is a pickle, which is never loaded"):
        read_source(tmp_path / "x.pkl")


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_truncated_files_are_one_message(tmp_path, name, keep):
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "x.npz", X=X)
    save_file({"X": X}, tmp_path / "x.safetensors")
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:keep])
    with pytest.raises(SourceError, match=r"is not a complete|is truncated"):
        read_source(tmp_path / name)


def test_a_damaged_compressed_member_is_one_message(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", X=np.random.default_rng(0).normal(size=(50, 8)))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[500] ^= 255
    (tmp_path / "x.npz").write_bytes(bytes(data))
    with pytest.raises(SourceError, match="is damaged"):
        read_source(tmp_path / "x.npz")


def test_shapes_and_kinds_that_are_no_vectors(tmp_path):
    for array in (np.zeros(3), np.zeros((2, 3, 4)), np.zeros((0, 3)), np.zeros((3, 0))):
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(ShapeError, match=r"has shape \[.*\]; vectors are \[n, dim\]"):
            read_source(tmp_path / "x.npy")
    for array in (np.array([["a"]]), np.array([[1j]]), np.array([[True]])):
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(SourceError, match="not numbers"):
            read_source(tmp_path / "x.npy")


def test_the_header_of_safetensors_is_checked_before_it_is_trusted(tmp_path):
    path = tmp_path / "x.safetensors"
    header = b'{"X":{"dtype":"F32","shape":[1000,1000],"data_offsets":[0,4000000]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(SourceError, match=r"not a complete .safetensors file"):
        read_source(path)


def test_the_fingerprint_changes_with_a_byte(tmp_path):
    np.save(tmp_path / "x.npy", X)
    before = read_source(tmp_path / "x.npy").fingerprint
    assert read_source(tmp_path / "x.npy").fingerprint == before
    np.save(tmp_path / "x.npy", X + np.float32(1e-6))
    assert read_source(tmp_path / "x.npy").fingerprint != before


def test_the_fingerprint_covers_the_last_byte_of_a_large_file(tmp_path):
    rows = np.zeros((1 << 16, 32), np.float32)
    np.save(tmp_path / "x.npy", rows)
    before = read_source(tmp_path / "x.npy").fingerprint
    rows[-1, -1] = 1
    np.save(tmp_path / "x.npy", rows)
    assert read_source(tmp_path / "x.npy").fingerprint != before


def test_a_large_array_is_not_copied_into_memory(tmp_path):
    """64 MB of vectors are read, fingerprinted and checked with a few blocks of their own memory."""
    rows = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(1 << 16, 256))
    rows[:] = 1
    rows.flush()
    del rows
    before = anonymous_megabytes()
    items = read_source(tmp_path / "x.npy").items
    require_finite_rows(torch.from_numpy(items), what="x")
    assert anonymous_megabytes() - before < 48


def anonymous_megabytes():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    return next(
        int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("RssAnon")
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_that_cannot_be_compared_are_counted_and_the_first_are_named(dtype):
    vectors = torch.ones(100_000, 70, dtype=dtype)
    require_finite_rows(vectors, what="x")
    vectors[99_999, 69] = torch.nan
    vectors[[7, 90_000], 3] = torch.inf
    vectors[8, 5] = -torch.inf
    vectors[20:40] = 0
    with pytest.raises(DataError) as error:
        require_finite_rows(vectors, what="features/")
    assert str(error.value) == (
        "features/: 24 of 100000 rows cannot be compared: 1 NaN (row 99999), 3 infinite (rows 7, 8, 90000), "
        "20 zero (rows 20, 21, 22, 23, 24, ...); remove these rows, or compute them again"
    )


def test_tiny_vectors_are_not_zero():
    require_finite_rows(torch.full((2, 3), 1e-30), what="x")
