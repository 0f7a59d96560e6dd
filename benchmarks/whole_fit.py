"""How long whole fits take with their defaults: candidates, folds, training and refit.

The peer of a fit with labels is scikit-learn's logistic regression of the same rows in the same run. What
the rows are changes how long either takes: they are made, with 150 classes that overlap.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from timing import Row

from querykey import Adapter

ROWS, WIDTH, DIM, CLASSES, UNLABELLED_ROWS = 15_000, 384, 256, 150, 100_000
SECONDS, CLOSED_SECONDS, UNLABELLED_SECONDS, TIMES_THE_PEER = 45.0, 8.0, 180.0, 5.0
MOST_STEPS = 2_000


def rows(count: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows of overlapping classes, and their labels."""
    draw = np.random.default_rng(seed)
    centres, labels = draw.normal(size=(CLASSES, WIDTH)), draw.integers(CLASSES, size=count)
    noise = draw.normal(size=(count, WIDTH)) * np.linspace(0.2, 1.5, WIDTH)
    return (0.25 * centres[labels] + noise).astype(np.float32), labels


def seconds(work: Callable[[], object]) -> float:
    """How long it took, once: whole fits are too long to be repeated."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure() -> list[Row]:
    """Whole fits by the seconds that they may take, and by logistic regression."""
    vectors, labels = rows(ROWS)
    adapter = Adapter(dim=DIM)
    peer = seconds(lambda: LogisticRegression(C=1, max_iter=1000).fit(vectors, labels))
    whole = seconds(lambda: adapter.fit(vectors, labels))
    closed = seconds(lambda: Adapter(dim=DIM, steps=0).fit(vectors, labels))
    many = rows(UNLABELLED_ROWS, seed=1)[0]
    unlabelled = seconds(lambda: Adapter(dim=DIM).fit(many))
    steps = adapter.report_["steps_taken"]
    made = f"{ROWS:,} x {WIDTH} with labels"
    return [
        Row(
            f"a fit of {made} by logistic regression", whole / peer, f"at most {TIMES_THE_PEER:g}",
            whole / peer <= TIMES_THE_PEER,
            {"fit_s": round(whole, 1), "logistic_regression_s": round(peer, 1), "steps": steps},
        ),
        Row(
            f"a fit of {made} by {SECONDS:g} s, at most {MOST_STEPS:,} steps", whole / SECONDS, "at most 1",
            whole <= SECONDS and steps <= MOST_STEPS, {"fit_s": round(whole, 1), "steps": steps},
        ),
        Row(
            f"closed forms alone by {CLOSED_SECONDS:g} s", closed / CLOSED_SECONDS, "at most 1",
            closed <= CLOSED_SECONDS, {"fit_s": round(closed, 1)},
        ),
        Row(
            f"a fit of {UNLABELLED_ROWS:,} x {WIDTH} without labels by {UNLABELLED_SECONDS:g} s",
            unlabelled / UNLABELLED_SECONDS, "at most 1", unlabelled <= UNLABELLED_SECONDS,
            {"fit_s": round(unlabelled, 1)},
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    for row in measure():
        print(row)
