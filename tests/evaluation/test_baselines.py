"""Projections and the classifier that an adapter must beat."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from querykey.errors import DataError, RangeError, ShapeError
from querykey.evaluation import baselines
from querykey.evaluation.baselines import (
    fit_baselines,
    lda,
    pca,
    random_projection,
    truncated,
    whitened_pca,
)
from querykey.evaluation.few_labels import labelled_unit_rows
from querykey.evaluation.logistic_regression import LinearClassifier, logistic_regression


def rows(count=60, width=8, seed=0):
    """Not centred, of different lengths and spreads, as features are."""
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return drawn * torch.linspace(3, 0.5, width) + 1


def classes(count=60, number=4):
    """(rows, labels): one blob a class."""
    labels = torch.arange(count) % number
    middle = 3 * torch.randn(number, 8, generator=torch.Generator().manual_seed(9))
    return rows(count) * 0.5 + middle[labels], labels


def cosines(unit):
    return (torch.as_tensor(unit).double() @ torch.as_tensor(unit).double().T).numpy()


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(baselines, "BLOCK", 7)
    monkeypatch.setattr("querykey.evaluation.moments.BLOCK", 7)


@pytest.mark.parametrize("whitened", [False, True])
def test_pca_is_that_of_scikit_learn_then_normalised(whitened):
    train, test = rows(), rows(seed=1)
    theirs = PCA(3, whiten=whitened, svd_solver="full").fit(normalize(train.double()))
    ours = (whitened_pca if whitened else pca)(train, 3).transform(test)
    np.testing.assert_allclose(
        cosines(ours), cosines(normalize(theirs.transform(normalize(test)))), atol=1e-5
    )


def test_uncentred_pca_keeps_the_longest_directions():
    train, test = rows(), rows(seed=1)
    directions = np.linalg.svd(normalize(train.double()), full_matrices=False)[2][:3]
    theirs = normalize(normalize(test) @ directions.T)
    np.testing.assert_allclose(
        cosines(pca(train, 3, centred=False).transform(test)), cosines(theirs), atol=1e-5
    )


def test_lda_is_that_of_scikit_learn_then_normalised():
    train, labels = classes()
    test = rows(seed=1)
    theirs = LinearDiscriminantAnalysis(n_components=2).fit(normalize(train), labels)
    ours = lda(train, labels, 2).transform(test)
    np.testing.assert_allclose(
        cosines(ours), cosines(normalize(theirs.transform(normalize(test)))), atol=1e-4
    )


def test_lda_has_at_most_one_dim_less_than_classes_and_says_so():
    train, labels = classes(number=4)
    fitted = lda(train, labels, 8)
    assert fitted.dim == 3
    assert fitted.transform(train).shape == (60, 3)


def test_lda_leaves_unlabelled_rows_out():
    train, labels = classes()
    more = torch.cat([train, 100 * torch.rand(20, 8)])
    known = torch.cat([labels, torch.full((20,), -1)])
    assert torch.equal(lda(more, known, 2).transform(train), lda(train, labels, 2).transform(train))


def test_lda_of_features_that_repeat_is_quiet():
    train, labels = classes()
    assert (
        lda(torch.cat([train, train], dim=1), labels, 3)
        .transform(torch.cat([train, train], dim=1))
        .isfinite()
        .all()
    )


def test_random_projection_has_orthonormal_directions_and_a_seed():
    drawn = random_projection(8, 3, seed=1)
    torch.testing.assert_close(drawn.matrix.T @ drawn.matrix, torch.eye(3))
    assert torch.equal(drawn.matrix, random_projection(8, 3, seed=1).matrix)
    assert not torch.equal(drawn.matrix, random_projection(8, 3, seed=2).matrix)


def test_truncation_is_the_first_coordinates_of_unit_rows():
    wanted = torch.nn.functional.normalize(rows()[:, :3], dim=1)
    torch.testing.assert_close(truncated(8, 3).transform(rows()), wanted)


def test_every_baseline_gives_unit_float32_rows_of_its_dim():
    train, labels = classes()
    fitted = fit_baselines(train.half(), 3, labels=labels)
    assert list(fitted) == [
        "frozen", "truncated", "pca", "pca_uncentred", "whitened_pca", "random_projection", "lda",
    ]  # fmt: skip
    for name, projector in fitted.items():
        given = projector.transform(train.half())
        assert projector.name == name
        assert given.dtype == torch.float32
        assert given.shape == (60, 8 if name == "frozen" else 3) == (60, projector.dim)
        torch.testing.assert_close(given.norm(dim=1), torch.ones(60))
        assert projector.transform(train[:0]).shape == (0, projector.dim)


def test_at_full_width_what_would_repeat_the_frozen_row_is_left_out():
    assert list(fit_baselines(rows(), 8)) == ["frozen", "pca", "whitened_pca"]
    for projector in (pca(rows(), 8, centred=False), random_projection(8, 8), truncated(8, 8)):
        frozen = torch.nn.functional.normalize(rows(), dim=1)
        np.testing.assert_allclose(cosines(projector.transform(rows())), cosines(frozen), atol=1e-5)


@pytest.mark.parametrize("labels", [[0] * 6, [-1] * 6, [0, 1, 2, 3, 4, 5]])
def test_lda_needs_classes_that_can_be_separated(labels):
    labels = torch.tensor(labels)
    assert "lda" not in fit_baselines(rows(6), 2, labels=labels)
    with pytest.raises(DataError, match="two classes and more rows than classes"):
        lda(rows(6), labels, 2)


def test_whitening_of_fewer_rows_than_dims_stays_finite():
    """4 rows have 3 directions; the others hold rounding, which whitening would blow up."""
    train = rows(4)
    given = whitened_pca(train, 6).transform(train)
    assert given.isfinite().all()
    assert given[:, 3:].abs().max() == 0


def test_logistic_regression_separates_blobs_and_keeps_their_labels():
    train, labels = classes()
    model = logistic_regression(train, labels * 100 + 7)
    assert isinstance(model, LinearClassifier)
    assert model.converged
    assert (model.predict(train) == labels * 100 + 7).float().mean() > 0.95
    assert model.predict(train[:0]).tolist() == []


def test_logistic_regression_of_two_classes():
    train, labels = classes(number=2)
    model = logistic_regression(train, labels + 3)
    assert len(model.weight) == 2
    assert (model.predict(train) == labels + 3).float().mean() > 0.95


@pytest.mark.parametrize("folds", [None, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_logistic_regression_chooses_its_penalty_by_rows_held_out(folds, seed):
    """One good coordinate among 300 of noise, a third of the labels wrong: that wants a strong penalty."""
    strengths = (0.1, 1e5)
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(600) % 2
    noisy = torch.where(torch.rand(600, generator=generator) < 1 / 3, 1 - truth, truth)
    wide = torch.cat([12.0 * truth[:, None] - 6, torch.randn(600, 300, generator=generator)], dim=1)
    chosen = logistic_regression(wide, noisy, strengths=strengths, folds=folds, seed=seed)
    assert chosen.strength == 0.1
    # classes that lie along one line: the middle ones are found by weights that are large
    line = torch.cat([torch.linspace(0, 1, 600)[:, None], torch.ones(600, 1)], dim=1)
    bands = torch.arange(600) // 100
    assert logistic_regression(line, bands, strengths=strengths, folds=folds, seed=seed).strength == 1e5


@pytest.mark.parametrize("number", [2, 4])
def test_logistic_regression_is_scikit_learns_on_unit_rows(number):
    train, labels = classes(number=number)
    unit = normalize(train.double())
    theirs = LogisticRegression(C=3.0, tol=1e-10, max_iter=5000).fit(unit, labels.numpy())
    ours = logistic_regression(train, labels, strengths=(3.0,))
    logits = torch.from_numpy(unit).float() @ ours.weight.T + ours.bias
    np.testing.assert_allclose(logits.softmax(dim=1), theirs.predict_proba(unit), atol=2e-3)


def test_logistic_regression_same_seed_same_bits_and_unlabelled_rows_do_not_count():
    train, labels = classes()
    once, again = logistic_regression(train, labels), logistic_regression(train, labels)
    assert torch.equal(once.weight, again.weight)
    more = logistic_regression(torch.cat([train, -train]), torch.cat([labels, torch.full((60,), -1)]))
    assert torch.equal(once.weight, more.weight)


def test_logistic_regression_of_three_rows_still_fits():
    model = logistic_regression(torch.eye(3), torch.tensor([0, 1, 1]))
    assert model.predict(torch.eye(3)).shape == (3,)


def test_bad_input_is_one_message():
    with pytest.raises(RangeError, match="from 1 to the width 8, got 9"):
        fit_baselines(rows(), 9)
    with pytest.raises(RangeError, match="from 1 to the width 8, got 0"):
        pca(rows(), 0)
    with pytest.raises(RangeError, match="from 1 to the width 8, got 9"):
        random_projection(8, 9)
    with pytest.raises(DataError, match="got none"):
        pca(rows(0), 2)
    with pytest.raises(DataError, match="NaN or infinite"):
        whitened_pca(torch.full((3, 3), torch.nan), 2)
    with pytest.raises(DataError, match="two classes, got one"):
        logistic_regression(rows(4), torch.tensor([1, 1, -1, 1]))
    with pytest.raises(ShapeError, match="5 rows and 3 labels"):
        labelled_unit_rows(rows(5), torch.tensor([0, 1, 2]))
