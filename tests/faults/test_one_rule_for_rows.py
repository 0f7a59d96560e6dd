"""`querykey.runtime` and codes take the rows that the estimator takes, and refuse the others as it does."""

import numpy as np
import pytest
import torch
from input_cases import CONTAINERS, ROWS
from sklearn.base import clone

from querykey import Adapter
from querykey.errors import DataError
from querykey.runtime import load

WIDE = np.concatenate([ROWS, ROWS[::-1]], axis=1)


@pytest.fixture(scope="module")
def adapter():
    return Adapter(dims=(8, 4), bits=(8,), steps=0, batch_size=32, validation_fraction=0.0).fit(WIDE)


@pytest.fixture(scope="module")
def loaded(adapter, tmp_path_factory):
    adapter.save(tmp_path_factory.mktemp("one") / "a")
    return load(tmp_path_factory.getbasetemp() / "one0" / "a")


@pytest.mark.parametrize("container", CONTAINERS)
def test_rows_in_any_container_have_one_code(container):
    X, plain = (
        CONTAINERS[container](),
        Adapter(dim=4, bits=(8,), steps=0, batch_size=32, validation_fraction=0.0),
    )
    found, expected = clone(plain).fit(X).quantize(X).astype(int), plain.fit(ROWS).quantize(ROWS)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("scale", [1e300, 1e-100, 1e25, 1e-25])
def test_codes_of_rows_of_any_magnitude(scale, adapter, loaded):
    expected = adapter.quantize(WIDE).astype(int)
    for codes in (adapter.quantize(WIDE.astype("f8") * scale), loaded.quantize(WIDE.astype("f8") * scale)):
        assert np.abs(codes - expected).max() <= 1
    moved = loaded.transform(WIDE.astype("f8") * scale)
    np.testing.assert_allclose(moved, adapter.transform(WIDE), atol=1e-5)


@pytest.mark.parametrize("call", ["transform", "transform_documents", "quantize"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ma.array(WIDE, mask=np.eye(*WIDE.shape)), "masked array with missing numbers"),
        (WIDE + 1j, "real numbers, got complex"),
        (WIDE.astype(str), "real numbers, got <U"),
        ([[1.0, 2.0], [3.0]], "cannot be read as an array"),
        (torch.from_numpy(WIDE).bfloat16(), "cannot be read as an array"),
    ],
)
def test_the_numpy_runtime_refuses_what_is_no_matrix_of_numbers(call, rows, message, loaded):
    with pytest.raises(DataError, match=message):
        getattr(loaded, call)(rows)
