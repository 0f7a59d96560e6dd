"""What is missing stays missing, and types that Arrow does not take are refused or read."""

import numpy as np
import pandas as pd
import pytest
import torch

from querykey import Adapter
from querykey.adapter.rows import labels_of
from querykey.adapter.split import numbered_pairs
from querykey.errors import DataError, ShapeError

NAN = float("nan")
MISSING = {
    "list": [NAN, "a", "b"],
    "none": [None, "a", "b"],
    "pandas": pd.Series([pd.NA, "a", "b"]),
    "nat": [pd.NaT, "a", "b"],
    "masked": np.ma.array([7, 1, 2], mask=[1, 0, 0]),
    "floats": np.array([NAN, 1.0, 2.0]),
    "nullable": pd.Series([None, 1, 2], dtype="Int64"),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_label_is_unlabelled_in_every_container(name):
    assert labels_of(MISSING[name], 3).tolist() == [-1, 0, 1]


REFUSED = {
    "mixed": [1, "a", 2],
    "complex": np.array([1j, 2, 3]),
    "periods": pd.Series(pd.period_range("2020", periods=3, freq="D")),
    "dates": np.array(["2020-01-01"] * 3, dtype="M8[D]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_labels_that_are_no_classes_are_refused_in_our_words(name):
    with pytest.raises(DataError, match=r"y holds .* labels are strings or integers"):
        labels_of(REFUSED[name], 3)


def test_half_tensors_and_large_integers_are_labels():
    assert labels_of(torch.tensor([0, 1, 0]).bfloat16(), 3).tolist() == [0, 1, 0]
    assert labels_of([10**30, 1, 1], 3).tolist() == [1, 0, 0]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "object"])
def test_pairs_of_any_whole_numbers(dtype):
    assert numbered_pairs(np.array([[0, 1], [1, 0]]).astype(dtype), 2, 2).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("pairs", [torch.ones(1, 2).bfloat16(), np.ma.array([[0, 1]], mask=[[0, 1]])])
def test_pairs_that_are_no_whole_numbers_are_refused(pairs):
    with pytest.raises(ShapeError, match="pairs"):
        numbered_pairs(pairs, 2, 2)


def test_masked_rows_are_refused():
    rows = np.ma.array(np.random.default_rng(0).normal(size=(8, 4)), mask=np.eye(8, 4))
    with pytest.raises(DataError, match="4 missing numbers"):
        Adapter(steps=0, batch_size=32).fit(rows)
