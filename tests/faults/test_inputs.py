"""Containers with types of labels, dialects of tables, formats of images, in every state of PyTorch.

One result for each, or a clear refusal.
"""

from functools import cache

import numpy as np
import pytest
import torch
from ambient import STATES
from faults.test_one_decoder import FORMATS, put
from faults.test_table_dialects import DIALECTS
from frozen_toys import image_encoder, text_encoder
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
from pairwise import every, pairwise

from querykey.data.readers.open import read_source
from querykey.features.embed import embed


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


FACTORS = {"container": CORE_CONTAINERS, "labels": CORE_LABELS, "state": STATES}
CASES = [(*case, 0) for case in pairwise(FACTORS)]
# training comes after all of them: each value is trained with once
CASES += [
    (CORE_CONTAINERS[n % len(CORE_CONTAINERS)], labels, list(STATES)[n % len(STATES)], 5)
    for n, labels in enumerate(CORE_LABELS)
]
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


IMAGES = "images of every format"
"""In one folder: a format is read in each state, and each state costs one folder."""


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Writes each source once; gives its path, an encoder for it, and what no state of PyTorch gives."""
    torch.set_num_threads(1)

    @cache
    def source(name):
        folder = tmp_path_factory.mktemp("source")
        if name == IMAGES:
            for row in range(64):
                put(folder / "images", list(FORMATS)[row % len(FORMATS)], rows=[row])
            return folder / "images", image_encoder()
        file, data = DIALECTS[name]
        (folder / file).write_bytes(data)
        return folder / file, text_encoder()

    @cache
    def expected(name, steps):
        return embedded(*source(name), tmp_path_factory.mktemp("expected") / "f", steps)

    return lambda name, steps: (*source(name), expected(name, steps))


def embedded(path, encoder, out, steps):
    """Ids, labels, features, and what a fit makes of them."""
    features = embed(read_source(path), encoder, out)
    moved = estimator(steps).fit(features, features.labels).transform(features)
    return list(features.ids), features.labels.tolist(), np.asarray(features.vectors), np.asarray(moved)


def check_source(source, state, out, steps):
    """Read, embed and fit in a state, and compare."""
    path, encoder, want = source
    with STATES[state]():
        ids, labels, vectors, moved = embedded(path, encoder, out, steps)
    assert (ids, labels) == want[:2]
    assert len(ids) == 64
    assert (vectors.dtype, moved.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(vectors, want[2], atol=1e-5)
    np.testing.assert_allclose(moved, want[3], atol=1e-3 if steps else 1e-4)


SOURCES = [*DIALECTS, IMAGES]
PRODUCT = every({"source": SOURCES, "state": STATES})
SOURCE_CASES = [(name, state, 5 if name == IMAGES else 0) for name, state in PRODUCT]
"""The images train, in each state; `make soak` tries all with both."""


@pytest.mark.parametrize(("name", "state", "steps"), SOURCE_CASES)
def test_every_table_and_folder_of_images_is_the_same_in_every_state(name, state, steps, written, tmp_path):
    check_source(written(name, steps), state, tmp_path / "f", steps)
