"""One table of losses by name serves adapters and pretraining, and old names are still understood."""

import warnings

import pytest
import torch

from querykey import losses
from querykey.errors import ConfigError
from querykey.lookup.two_view_pairs import look_up_views
from querykey.losses.by_name import (
    LOSSES,
    RENAMED,
    loss_names,
    objective,
    takes_target,
    takes_temperature,
    view_objective,
)
from querykey.pretraining.settings.settings import PretrainSettings


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_has_the_name_of_its_function(name):
    assert LOSSES[name] is getattr(losses, name)


@pytest.mark.parametrize("name", loss_names(with_target=False))
def test_adapter_and_pretraining_take_the_same_loss(name):
    lookup = look_up_views(torch.eye(4), torch.eye(4).roll(1, 1))
    options = {"temperature": 0.5} if takes_temperature(name) else {}
    torch.testing.assert_close(objective(name, **options).loss(lookup), view_objective(name, 0.5)(lookup))


def test_a_loss_with_a_target_is_refused_where_there_is_none():
    assert takes_target("score_difference")
    with pytest.raises(ConfigError, match="needs the scores of a frozen model"):
        view_objective("score_distillation", 0.5)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_warns_and_means_the_new_one(old, new):
    with pytest.warns(FutureWarning, match=f"named '{new}' now"):
        assert PretrainSettings.make({"loss": old}).loss.kind == new


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_saved_run_with_an_old_name_is_read_without_a_warning(old, new):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert PretrainSettings.from_dict({"loss": old}).loss.kind == new
