"""A fit leaves nothing of an earlier one, and a refused one leaves all of it."""

import pandas as pd
import pytest
import torch

from querykey import Adapter
from querykey.errors import DataError
from querykey.features.features import Features

ROWS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 4
FRAME = pd.DataFrame(ROWS.numpy(), columns=["a", "b", "c", "d"])


def features(model_key):
    ids = [str(row) for row in range(64)]
    return Features(ROWS, ids=ids, labels=None, label_names=(), previews=ids, model_key=model_key)


def adapter():
    return Adapter(dim=3, candidates="closed_form", batch_size=32, validation_fraction=0.0)


@pytest.mark.parametrize(
    "refit",
    [
        lambda fitted: fitted.fit(ROWS),
        lambda fitted: fitted.fit(ROWS.numpy()),
        lambda fitted: fitted.fit(features("m")),
        lambda fitted: fitted.fit_pairs(ROWS, ROWS),
    ],
)
def test_names_of_columns_go_with_a_fit_on_rows_without_names(refit):
    fitted = adapter().fit(FRAME)
    assert fitted.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert not hasattr(refit(fitted), "feature_names_in_")
    assert list(fitted.saved().feature_names or []) == []


def test_the_model_of_the_features_goes_with_a_fit_on_an_array():
    fitted = adapter().fit(features("one"))
    assert fitted.model_key_ == "one"
    assert fitted.fit(ROWS).model_key_ == ""
    assert fitted.transform(features("another")).shape == (64, 3)


def test_the_width_and_the_history_are_those_of_the_last_fit():
    fitted = Adapter(dim=3, steps=5, batch_size=32).fit(ROWS, LABELS)
    assert fitted.history_
    fitted.set_params(steps=0).fit(ROWS[:, :3], LABELS)
    assert (fitted.n_features_in_, fitted.fc_.width, fitted.history_) == (3, 3, [])


@pytest.mark.parametrize("bad", [ROWS * torch.nan, torch.zeros(64, 5)])
def test_a_refused_fit_keeps_names_width_and_rows(bad):
    fitted = adapter().fit(FRAME)
    before = fitted.transform(FRAME)
    with pytest.raises(DataError):
        fitted.fit(bad)
    assert fitted.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert fitted.n_features_in_ == 4
    assert (fitted.transform(FRAME) == before).all()
