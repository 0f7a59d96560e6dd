"""A run file says every fault at once, each with its dotted key and the nearest right spelling."""

import inspect
import subprocess
import sys
from typing import get_args

import pytest

from querykey import losses
from querykey.config.parsing import parse_setting
from querykey.errors import ConfigError, MissingPathError
from querykey.runs import adapter_tables
from querykey.runs.adapter_settings import AdaptRun, describe_settings, parse_run, read_run
from querykey.runs.adapter_tables import AutoLoss, CrossBatch, InBatch, Triplet

FREE = "score_distillation, score_difference"
KINDS = f"auto, nca, info_nce, {FREE}, contrastive, triplet, multi_similarity, circle"
KIND = "no such key of this kind; set"
MEANT = "no such key; did you mean"


def faults(raw):
    with pytest.raises(ConfigError) as caught:
        parse_run(raw, name="run.toml")
    first, *rest = str(caught.value).splitlines()
    assert first == "run.toml: cannot be run"
    return [line.removeprefix("  ") for line in rest]


def test_an_empty_run_leaves_all_to_the_fit():
    run = read_run(None)
    assert run == AdaptRun()
    assert (run.task, run.loss, run.memory, run.dim, run.seed, run.side) == (
        "unlabelled",
        None,
        None,
        None,
        0,
        "both",
    )


def test_a_file_options_and_settings_the_later_win(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        'labels = "species"\ndim = 32\nsteps = 10\n'
        'loss = { kind = "triplet", margin = 0.2 }\n[memory]\nkind = "in_batch"\n'
    )
    run = read_run(
        path, ["steps=30", "loss.mining=hard", "memory.kind=in_batch"], dim=48, labels=None, seed=None
    )
    assert (run.labels, run.dim, run.steps) == ("species", 48, 30)
    assert run.loss == Triplet(margin=0.2, mining="hard")
    assert run.memory == InBatch()


def test_settings_without_a_kind_are_about_the_kind_the_fit_chooses():
    for task in ({}, {"labels": "y"}, {"pairs": True}):
        assert read_run(None, ["loss.temperature=0.1"], **task).loss == AutoLoss(temperature=0.1)
    assert read_run(None, ["memory.capacity=5"]).memory == CrossBatch(capacity=5)


def test_a_bare_kind_is_a_table_with_that_kind():
    run = read_run(None, ["loss=triplet", "loss.margin=0.3", "fc=two_layer", "memory=in_batch"], labels="y")
    assert run.loss == Triplet(margin=0.3)
    assert (run.fc.kind, run.memory) == ("two_layer", InBatch())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("a.b=0.5", 0.5), ("a.b=3", 3), ("a.b=true", True), ("a.b=pca", "pca"), ("a.b='x y'", "x y"),
        ("a.b=[1, 2]", [1, 2]), ('a.b={ c = "d" }', {"c": "d"}), ("a.b=k=v", "k=v"), ("a.b=", ""),
        ("a.b=1\nc = 2", "1\nc = 2"), (" a.b = 1e-3 ", 1e-3),
    ],
)  # fmt: skip
def test_a_setting_is_a_toml_literal_or_a_bare_word(setting, value):
    assert parse_setting(setting) == ("a.b", value)
    assert type(parse_setting(setting)[1]) is type(value)


@pytest.mark.parametrize("setting", ["dim", "=3", "a..b=3", ".=1", ""])
def test_a_setting_without_key_or_value_is_refused(setting):
    with pytest.raises(ConfigError, match=r"must be KEY=VALUE, such as --set loss\.temperature=0\.1"):
        parse_setting(setting)


def test_a_setting_inside_a_number_is_refused():
    with pytest.raises(ConfigError, match=r"--set steps\.count: steps is 5, so it has no count"):
        read_run(None, ["steps=5", "steps.count=3"])


def test_all_faults_stand_in_one_message():
    raw = {"dim": 0, "temprature": 1.0, "memory": {"kind": "cros_batch"}, "seed": "three", "side": "docs"}
    assert faults(raw) == [
        "side: must be 'both' or 'query', got 'docs'",
        "dim: must be greater than 0, got 0",
        "seed: must be a valid integer, got 'three'",
        "memory.kind: no such kind 'cros_batch'; did you mean cross_batch?",
        "temprature: no such key; did you mean loss.temperature?",
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"pairs": True, "loss": {"temprature": 1}}, f"loss.temprature: {MEANT} temperature?"),
        ({"pairs": True, "loss": {"margin": 1}}, f"loss.margin: {KIND} loss.kind to triplet or circle"),
        ({"stps": 3}, "stps: no such key; did you mean steps?"),
        ({"capacity": 3}, "capacity: no such key; did you mean memory.capacity?"),
        ({"fc": {"strat": "pca"}}, "fc.strat: no such key; did you mean start?"),
        ({"memory": {"kind": "in_batch", "zzz": 5}}, "memory.zzz: no such key; there are kind"),
        ({"loss": {"kind": "xx"}}, f"loss.kind: no such kind 'xx'; there are {KINDS}"),
        ({"loss": 3}, 'loss: must be a table, such as { kind = "..." }, got 3'),
        ({"selection": 3}, "selection: must be a table, got 3"),
        ({"learning_rate": float("inf")}, "learning_rate: must be a finite number, got inf"),
        ({"dim": 3.5}, "dim: must be a valid integer, got 3.5"),
        ({"pairs": True, "labels": "y"}, "pairs: cannot be fitted together with labels; choose one"),
        ({"loss": "triplet"}, f"loss.kind: triplet needs labels or pairs; without them use one of {FREE}"),
    ],
)  # fmt: skip
def test_a_fault_names_its_key_and_what_would_be_right(raw, message):
    assert faults(raw) == [message]


def test_a_missing_or_broken_file_is_one_message(tmp_path):
    with pytest.raises(MissingPathError, match=r"none\.toml: no such run file"):
        read_run(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("dim = = 3")
    with pytest.raises(ConfigError, match=r"bad\.toml: is no TOML: "):
        read_run(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml: is no TOML: "):
        read_run(tmp_path / "binary.toml")


def test_a_resolved_run_comes_back_from_json():
    run = read_run(None, ["loss=circle", "loss.gamma=32", "selection.negatives=8"], labels="y", dim=4)
    assert AdaptRun.model_validate(run.model_dump(mode="json")) == run


def test_the_list_of_settings_names_every_key_once_a_kind():
    rows = [line.split(maxsplit=1) for line in describe_settings().splitlines()]
    said = dict(rows)
    assert said["loss.kind"].split(" | ") == KINDS.split(", ")
    assert said["memory.capacity"] == "whole number  (cross_batch)"
    assert said["fc.start"].startswith("auto | ")
    assert set(AdaptRun.model_fields) == {key.partition(".")[0] for key, _ in rows}
    assert len({tuple(row) for row in rows}) == len(rows)


@pytest.mark.parametrize("part", get_args(adapter_tables.Loss), ids=lambda part: part.__name__)
def test_the_options_of_a_loss_are_those_of_its_function(part):
    if part is AutoLoss:
        assert set(part.model_fields) == {"kind", "temperature"}
        return
    function = getattr(losses, part.model_fields["kind"].default)
    parameters = inspect.signature(function).parameters.values()
    own = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    assert set(part.model_fields) - {"kind"} == own


def test_loads_without_torch():
    code = "import sys, querykey.runs.adapter_settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
