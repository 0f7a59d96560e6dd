"""Every container with every type of labels, in every state of PyTorch: one result, or a clear refusal."""

from functools import cache

import numpy as np
import pytest
import torch
from ambient import STATES
from input_cases import (
    CONTAINERS,
    CORE_CONTAINERS,
    CORE_LABELS,
    LABELS,
    MEANING,
    REFUSED_CONTAINERS,
    REFUSED_LABELS,
    ROWS,
    estimator,
)
from pairwise import pairwise


@cache
def expected(meaning, steps):
    """What a fit on an array gives."""
    torch.set_num_threads(1)
    return estimator(steps).fit(ROWS, MEANING[meaning]).transform(ROWS)


def check(container, labels, state, steps):
    """Fit, transform, and compare with a fit on an array."""
    make, meaning = LABELS[labels]
    want = expected(meaning, steps)
    X, y = CONTAINERS[container](), make()
    with STATES[state]():
        moved = estimator(steps).fit(X, y).transform(X)
    assert isinstance(moved, torch.Tensor if isinstance(X, torch.Tensor) else np.ndarray)
    moved = np.asarray(moved)
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved, want, atol=1e-4 if steps else 1e-5)


STEPS = (0, 5)
CASES = pairwise({"container": CORE_CONTAINERS, "labels": CORE_LABELS, "state": STATES, "steps": STEPS})
CASES += [(container, "words", "no_grad", 0) for container in CONTAINERS if container not in CORE_CONTAINERS]
CASES += [("C order", labels, "no_grad", 0) for labels in LABELS if labels not in CORE_LABELS]


@pytest.mark.parametrize(("container", "labels", "state", "steps"), CASES)
def test_every_container_and_type_of_labels_is_fitted_alike(container, labels, state, steps):
    check(container, labels, state, steps)


@pytest.mark.parametrize("container", REFUSED_CONTAINERS)
def test_rows_that_are_no_matrix_of_numbers_are_refused(container):
    make, message = REFUSED_CONTAINERS[container]
    with pytest.raises((ValueError, TypeError), match=message):
        estimator(0).fit(make())


@pytest.mark.parametrize("labels", REFUSED_LABELS)
def test_labels_that_are_no_classes_are_refused(labels):
    make, message = REFUSED_LABELS[labels]
    with pytest.raises(ValueError, match=message):
        estimator(0).fit(ROWS, make())
