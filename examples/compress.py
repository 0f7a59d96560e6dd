"""Compress features without labels, and see how many of the ten nearest neighbours are kept."""

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from querykey import Adapter

rows, _ = load_digits(return_X_y=True)
train, test = train_test_split(rows, random_state=0)

adapter = Adapter(dim=16, steps=100).fit(train)
print(f"64 -> 16 numbers a row: {adapter.score(test):.0%} of the frozen neighbours kept")
