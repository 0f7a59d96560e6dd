"""Settings of a pretraining: what is refused, what is filled in, and what a file gives back."""

import json
import math
import re

import pytest

from querykey import pretrain
from querykey.errors import ConfigError, RangeError, SourceError
from querykey.pretraining.settings.methods import OPTIMIZERS
from querykey.pretraining.settings.resolve import resolve_settings
from querykey.pretraining.settings.settings import PretrainSettings


def resolve(images=5000, channels=3, side=32, **chosen):
    return resolve_settings(PretrainSettings.make(chosen), images=images, channels=channels, side=side)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"batch_size": 1}, "batch_size: must be at least 2, got 1"),
        ({"loss.temperature": 0.0}, "loss.temperature: must be greater than 0, got 0.0"),
        ({"loss.temperature": -1.0}, "loss.temperature: must be greater than 0"),
        ({"loss.temperature": math.nan}, "loss.temperature: must be a finite number"),
        ({"optimizer.learning_rate": math.inf}, "optimizer.learning_rate: must be a finite number, got inf"),
        ({"optimizer.learning_rate": 0.0}, "optimizer.learning_rate: must be greater than 0"),
        ({"epochs": 0.0}, "epochs: must be greater than 0"),
        ({"minutes": -2.0}, "minutes: must be greater than 0"),
        ({"views.strength": 0.0}, "views.strength: must be greater than 0"),
        ({"optimizer.warm_up": 1.0}, "optimizer.warm_up: must be less than 1"),
        ({"optimizer.sgd_momentum": -0.1}, "optimizer.sgd_momentum: must be at least 0"),
        ({"optimizer.weight_decay": -1e-4}, "optimizer.weight_decay: must be at least 0"),
        ({"optimizer.weight_decay": math.nan}, "optimizer.weight_decay: must be a finite number"),
        ({"chunks": 0}, "chunks: must be greater than 0"),
        ({"head.dim": 0}, "head.dim: must be greater than 0"),
        ({"head.hidden": 0}, "head.hidden: must be greater than 0"),
        ({"held_out": -1}, "held_out: must be at least 0"),
        ({"num_evals": -1}, "num_evals: must be at least 0"),
        ({"image_size": 7}, "image_size: must be at least 8"),
        ({"views.size": 7}, "views.size: must be at least 8"),
        ({"batch_norm.groups": 0}, "batch_norm.groups: must be greater than 0"),
        ({"steps": 0}, "steps: must be greater than 0"),
        ({"seed": -1}, "seed: must be at least 0"),
    ],
)
def test_a_number_outside_its_range_is_refused(chosen, said):
    with pytest.raises(RangeError, match=said):
        resolve(**chosen)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"minutes": 1.0, "epochs": 2.0}, "minutes and epochs each say how long to train"),
        ({"epochs": 1.0, "steps": 2}, "epochs and steps each say how long to train"),
        ({"optimizer.learning_rate": 0.1, "optimizer.lr_scaling": "linear"}, "give one of them"),
        ({"chunks": 2, "batch_norm": "split"}, "use chunks = 1"),
        ({"loss": "nt_xnt"}, "loss.kind: no such kind 'nt_xnt'; there are info_nce, nca"),
        ({"loss": "decoupled", "loss.sigmma": 1.0}, "loss.sigmma: no such key; did you mean sigma?"),
        (
            {"loss": "info_nce", "loss.margin": 1.0},
            "loss.margin: no such key of this kind; set loss.kind to triplet or circle",
        ),
        ({"loss": "triplet", "loss.learned_temperature": True}, "triplet takes no temperature"),
        ({"optimizer": "adam"}, "optimizer.kind: must be 'sgd', 'adamw' or 'lars', got 'adam'"),
        (
            {"optimizer.lr_scaling": "cubic"},
            "optimizer.lr_scaling: must be 'linear', 'square_root' or 'none'",
        ),
        ({"precision": "float16"}, "precision: must be 'auto', "),
        ({"layout": "any"}, "layout: must be 'auto', "),
        ({"head": "deep"}, "head.kind: must be 'none', 'linear' or 'mlp'"),
        ({"head.layers": 4}, "head.layers: must be 2 or 3, got 4"),
        ({"batch_norm": "none"}, "batch_norm.kind: must be"),
    ],
)
def test_settings_that_do_not_exist_or_contradict_each_other(chosen, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        resolve(**chosen)


def test_rates_go_together_with_the_rule_none_only():
    assert (
        resolve(
            **{"optimizer.learning_rate": 0.3}, **{"optimizer.lr_scaling": "none"}
        ).optimizer.learning_rate
        == 0.3
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("rule", "batch", "factor"),
    [
        ("linear", 64, 1 / 4), ("linear", 256, 1), ("linear", 1024, 4), ("square_root", 64, 1 / 2),
        ("square_root", 256, 1), ("square_root", 1024, 2), ("none", 64, 1), ("none", 1024, 1),
    ],
)  # fmt: skip
def test_a_rule_gives_the_recipes_rate_at_256_and_scales_it(name, rule, batch, factor):
    rate = resolve(optimizer=name, **{"optimizer.lr_scaling": rule}, batch_size=batch).optimizer.learning_rate
    assert rate == pytest.approx(OPTIMIZERS[name].base * factor)


def test_the_recipe_fills_what_is_left_open():
    for name, recipe in OPTIMIZERS.items():
        made = resolve(optimizer=name)
        assert (made.optimizer.lr_scaling, made.optimizer.weight_decay) == (
            recipe.lr_scaling,
            recipe.weight_decay,
        )
        assert resolve(optimizer=name, **{"optimizer.weight_decay": 0.0}).optimizer.weight_decay == 0.0
    made = resolve()
    assert (made.minutes, made.epochs, made.steps) == (10.0, None, None)
    assert resolve(steps=3).minutes is None


def test_fewer_images_than_a_batch_lower_it_and_the_rate_follows():
    made = resolve(images=64, batch_size=256)
    assert made.batch_size == 64
    assert made.optimizer.learning_rate == pytest.approx(OPTIMIZERS["sgd"].base / 4)
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
        assert (made.image_size, made.views.size, made.views.preset) == (64, 64, "simclr")
        assert resolve(channels=channels, side=side, backbone="torchvision:resnet18").image_size == 224
        return
    assert (made.views.preset, made.image_size, made.views.size) == (views, size, view_size)
    assert made.make_views(channels).size == view_size


def test_given_view_options_override_the_recipe():
    made = resolve(**{"views.size": 20}, views={"flip": 0.0})
    assert made.make_views(3).flip == 0.0
    assert made.make_views(3).size == 20
    assert made.make_views(3).crop_scale == (0.2, 1.0)
    assert resolve(views={"crop_scale": (0.5, 1.0)}).make_views(3).crop_scale == (0.5, 1.0)
    assert resolve(views="simclr").make_views(3).crop_scale == (0.08, 1.0)
    with pytest.raises(ConfigError, match="flipp"):
        resolve(views={"flipp": 0.0}).make_views(3)


def test_settings_go_through_json_and_back():
    made = resolve(
        loss={"kind": "debiased", "tau_plus": 0.1}, views={"crop_scale": (0.3, 1.0)}, steps=9,
        **{"optimizer.lr_scaling": "none"},
    )  # fmt: skip
    back = PretrainSettings.from_dict(json.loads(json.dumps(made.as_dict())))
    assert back.as_dict() | {"views": None} == made.as_dict() | {"views": None}
    assert back.make_views(3) == made.make_views(3)
    again = resolve_settings(back, images=5000, channels=3, side=32)
    assert again.as_dict() == back.as_dict()
    assert PretrainSettings.from_dict({"of a later version": 1}) == PretrainSettings()


def test_faults_that_need_no_image_are_refused_first(tmp_path):
    with pytest.raises(ConfigError, match="batchsize: no such key; did you mean batch_size"):
        pretrain(tmp_path / "none", batchsize=3)
    with pytest.raises(ConfigError, match="method 'mocha' is not known"):
        pretrain(tmp_path / "none", method="mocha")


def test_an_unknown_network_is_answered_with_the_nearest_names():
    with pytest.raises(SourceError, match=r"similar names: .*resnet18"):
        pretrain("sklearn:digits", backbone="torchvision:resnet81", steps=1)
    with pytest.raises(SourceError, match="there is no backbone 'small_cmm'"):
        pretrain("sklearn:digits", backbone="small_cmm", steps=1)
