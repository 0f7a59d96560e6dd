"""The command that a report gives is read back as the settings that it is of."""

import shlex
from itertools import pairwise

import pytest

from querykey.pretraining.settings.methods import given_settings
from querykey.reports.page.reproduce import adapt_command, pretrain_command
from querykey.runs.adapter_settings import read_run
from querykey.runs.pretrain_settings import read_pretrain_run


def options_of(command, name):
    words = shlex.split(command)
    assert words[:2] == ["querykey", name]
    sets = [after for word, after in pairwise(words) if word == "--set"]
    named = {
        word: after for word, after in pairwise(words)
        if word.startswith("--") and word not in ("--set", "--pairs")
    }  # fmt: skip
    return words[2], sets, named


@pytest.mark.parametrize(
    "sets",
    [
        [], ["loss=nca", "loss.temperature=0.1"], ["memory=in_batch"], ["fc=residual", "fc.start=identity"],
        ["memory.capacity=512", "memory.holds=projections", "selection.negatives=4", "learning_rate=1e-4"],
        ["loss=triplet", "loss.soft=true", "both_sides=false"],
    ],
)  # fmt: skip
def test_an_adapter(sets):
    run = read_run(None, sets, dim=8, labels="my class")
    described = {
        "settings": run.as_dict(), "threads": 1,
        "features": {"at": {"spec": "my features", "split": None, "column": None, "pair_column": None}},
    }  # fmt: skip
    spec, told, named = options_of(adapt_command(described), "adapt")
    assert spec == "my features"
    assert named["--threads"] == "1"
    assert read_run(None, told, dim=int(named["--dim"]), labels=named["--labels"]) == run


@pytest.mark.parametrize(
    "sets",
    [
        ["method=simclr"], ["method=moco", "dictionary.capacity=512", "key_encoder.momentum=0.9"],
        ["method=simclr", "loss=decoupled", "loss.temperature=0.1", "loss.sigma=0.5", "optimizer=adamw"],
        ["method=simclr", "views.crop_scale=[0.3, 1.0]", "views.size=16", "head=none", "batch_norm=layer"],
        ["method=memory-bank", "dictionary.momentum=0.4", "backbone=small_cnn:16", "checkpointing=true"],
        ["method=xbm", "dictionary.weight=0.5", "dictionary.warm_up=0.2"],
    ],
)  # fmt: skip
def test_a_pretraining(sets):
    given = read_pretrain_run(None, sets)
    asked = given_settings(given.pop("method"), **given).as_dict()
    described = {
        "asked": asked, "settings": asked | {"steps": 40, "precision": "float32", "layout": "contiguous"},
        "data": {"at": {"spec": "photos", "split": "train"}}, "device": "cpu", "threads": 2,
    }  # fmt: skip
    spec, told, named = options_of(pretrain_command(described), "pretrain")
    assert named["--split"] == "train"
    read = read_pretrain_run(None, told, method=named["--method"], seed=int(named["--seed"]))
    again = given_settings(read.pop("method"), **read).as_dict()
    assert again == asked | {"steps": 40, "precision": "float32", "layout": "contiguous"}
    assert (spec, named["--data"]) == ("--data", "photos")
