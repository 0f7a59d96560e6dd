"""Settings of a pretraining: what is refused, what is filled in, and what a file gives back."""

import json
import math

import pytest

from querykey import pretrain
from querykey.errors import ConfigError, RangeError, SourceError
from querykey.pretraining.settings.resolve import resolve_settings
from querykey.pretraining.settings.settings import OPTIMIZERS, PretrainSettings


def resolve(images=5000, channels=3, side=32, **chosen):
    return resolve_settings(PretrainSettings(**chosen), images=images, channels=channels, side=side)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"batch_size": 1}, "batch_size must be at least 2, got 1: a view needs others"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"temperature": -1.0}, "temperature must be > 0"),
        ({"temperature": math.nan}, "temperature must be > 0"),
        ({"learning_rate": math.inf}, "learning_rate must be > 0 and finite"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"epochs": 0.0}, "epochs must be > 0"),
        ({"minutes": -2.0}, "minutes must be > 0"),
        ({"view_strength": 0.0}, "view_strength must be > 0"),
        ({"warm_up": 1.0}, "warm_up must be from 0 to below 1"),
        ({"sgd_momentum": -0.1}, "sgd_momentum must be from 0 to below 1"),
        ({"head_layers": 4}, "head_layers must be 2 or 3, got 4"),
        ({"head_layers": 1}, "for 1 use head linear"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0"),
        ({"weight_decay": math.nan}, "weight_decay must be at least 0"),
        ({"chunks": 0}, "chunks must be at least 1"),
        ({"head_dim": 0}, "head_dim must be at least 1"),
        ({"head_hidden": 0}, "head_hidden must be at least 1"),
        ({"held_out": -1}, "held_out must be at least 0"),
        ({"looks": -1}, "looks must be at least 0"),
        ({"image_size": 7}, "image_size must be at least 8"),
        ({"view_size": 7}, "view_size must be at least 8"),
        ({"batch_norm_groups": 0}, "batch_norm_groups must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_a_number_outside_its_range_is_told(chosen, said):
    with pytest.raises(RangeError, match=said):
        resolve(**chosen)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"minutes": 1.0, "epochs": 2.0}, "minutes and epochs each say how long to train"),
        ({"epochs": 1.0, "steps": 2}, "epochs and steps each say how long to train"),
        ({"learning_rate": 0.1, "rule": "linear"}, "give one of them"),
        ({"chunks": 2, "batch_norm": "split"}, "use chunks = 1"),
        ({"loss": "nt_xnt"}, "loss must be one of info_nce, nca, decoupled.*; got 'nt_xnt'"),
        ({"loss": "decoupled", "loss_options": {"sigmma": 1.0}}, "has no option sigmma; it has"),
        ({"loss": "info_nce", "loss_options": {"margin": 1.0}}, "the loss info_nce has no option margin"),
        ({"loss": "triplet", "learned_temperature": True}, "triplet takes no temperature"),
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw, lars; got 'adam'"),
        ({"rule": "cubic"}, "rule must be one of linear, square_root, none; got 'cubic'"),
        ({"precision": "float16"}, "precision must be one of"),
        ({"layout": "any"}, "layout must be one of"),
        ({"head": "deep"}, "head must be one of none, linear, mlp"),
        ({"batch_norm": "none"}, "batch_norm must be one of"),
    ],
)
def test_settings_that_do_not_exist_or_contradict_each_other(chosen, said):
    made = PretrainSettings()
    for name, value in chosen.items():  # past the type checks of these tests, which nobody else has
        object.__setattr__(made, name, value)
    with pytest.raises(ConfigError, match=said):
        resolve_settings(made, images=5000, channels=3, side=32)


def test_rates_go_together_with_the_rule_none_only():
    assert resolve(learning_rate=0.3, rule="none").learning_rate == 0.3


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("rule", "batch", "factor"),
    [
        ("linear", 64, 1 / 4), ("linear", 256, 1), ("linear", 1024, 4), ("square_root", 64, 1 / 2),
        ("square_root", 256, 1), ("square_root", 1024, 2), ("none", 64, 1), ("none", 1024, 1),
    ],
)  # fmt: skip
def test_a_rule_gives_the_recipes_rate_at_256_and_scales_it(name, rule, batch, factor):
    rate = resolve(optimizer=name, rule=rule, batch_size=batch).learning_rate
    assert rate == pytest.approx(OPTIMIZERS[name].base * factor)


def test_the_recipe_fills_what_is_left_open():
    for name, recipe in OPTIMIZERS.items():
        made = resolve(optimizer=name)
        assert (made.rule, made.weight_decay) == (recipe.rule, recipe.weight_decay)
        assert resolve(optimizer=name, weight_decay=0.0).weight_decay == 0.0
    made = resolve()
    assert (made.minutes, made.epochs, made.steps) == (10.0, None, None)
    assert resolve(steps=3).minutes is None


def test_fewer_images_than_a_batch_lower_it_and_the_rate_follows():
    made = resolve(images=64, batch_size=256)
    assert made.batch_size == 64
    assert made.learning_rate == pytest.approx(OPTIMIZERS["sgd"].base / 4)
    assert made.held_out == 6
    assert resolve(images=10, chunks=40, batch_size=20).chunks == 10
    with pytest.raises(RangeError, match="1 images to train on; at least 2 are needed"):
        resolve(images=1)


@pytest.mark.parametrize(
    ("channels", "side", "views", "size", "view_size"),
    [
        (1, 28, "grayscale", 28, 21),
        (1, 8, "grayscale", 8, 8),
        (3, 32, "small_images", 32, 24),
        (3, 63, "small_images", 63, 48),
        (3, 64, "simclr", 64, 64),
        (3, 4, "small_images", 8, 8),
        (3, 224, "simclr", 224, 224),
        (3, 225, "small_cnn", None, None),
    ],
)
def test_views_and_sizes_follow_from_the_images(channels, side, views, size, view_size):
    made = resolve(channels=channels, side=side)
    if size is None:  # larger than a backbone of its own size would take
        assert (made.image_size, made.view_size, made.views) == (64, 64, "simclr")
        assert resolve(channels=channels, side=side, backbone="torchvision:resnet18").image_size == 224
        return
    assert (made.views, made.image_size, made.view_size) == (views, size, view_size)
    assert made.make_views(channels).size == view_size


def test_own_words_on_views_win_over_what_is_chosen():
    made = resolve(view_size=20, view_options={"flip": 0.0})
    assert made.make_views(3).flip == 0.0
    assert made.make_views(3).size == 20
    assert made.make_views(3).crop_scale == (0.2, 1.0)
    assert resolve(view_options={"crop_scale": (0.5, 1.0)}).make_views(3).crop_scale == (0.5, 1.0)
    assert resolve(views="simclr").make_views(3).crop_scale == (0.08, 1.0)
    with pytest.raises(ConfigError, match="flipp"):
        resolve(view_options={"flipp": 0.0}).make_views(3)


def test_settings_go_through_json_and_back():
    made = resolve(
        loss="debiased", loss_options={"tau_plus": 0.1}, view_options={"crop_scale": (0.3, 1.0)}, steps=9,
        rule="none",
    )  # fmt: skip
    back = PretrainSettings.from_dict(json.loads(json.dumps(made.as_dict())))
    assert back.as_dict() | {"view_options": None} == made.as_dict() | {"view_options": None}
    assert back.make_views(3) == made.make_views(3)
    again = resolve_settings(back, images=5000, channels=3, side=32)
    assert again.as_dict() == back.as_dict()
    assert PretrainSettings.from_dict({"of a later version": 1}) == PretrainSettings()


def test_what_no_image_is_needed_for_is_refused_first(tmp_path):
    with pytest.raises(ConfigError, match="no setting 'batchsize'; there are"):
        pretrain(tmp_path / "none", batchsize=3)
    with pytest.raises(ConfigError, match="method 'mocha' is not known"):
        pretrain(tmp_path / "none", method="mocha")


def test_an_unknown_network_is_answered_with_the_nearest_names():
    with pytest.raises(SourceError, match=r"near it are .*resnet18"):
        pretrain("sklearn:digits", backbone="torchvision:resnet81", steps=1)
    with pytest.raises(SourceError, match="there is no backbone 'small_cmm'"):
        pretrain("sklearn:digits", backbone="small_cmm", steps=1)
