"""Specialise features with a few labels, save the adapter and load it again."""

import tempfile

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from querykey import Adapter

rows, digits = load_digits(return_X_y=True)
train, test, train_digits, test_digits = train_test_split(rows, digits, random_state=0)
train_digits[::2] = -1  # half of the labels are not known

adapter = Adapter(dim=32, steps=100).fit(train, train_digits)
verdict = adapter.report_["verdict"]
print(
    f"Recall@1 of new digits {adapter.score(test, test_digits):.3f}; verdict on the rows held out: {verdict}"
)

with tempfile.TemporaryDirectory() as folder:
    adapter.save(f"{folder}/adapter")
    again = Adapter.load(f"{folder}/adapter")
assert np.array_equal(again.transform(test), adapter.transform(test))
