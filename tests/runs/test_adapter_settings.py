"""A run file says every fault at once, each with its dotted key and the nearest right spelling."""

import inspect
import json

import pytest

from querykey import losses
from querykey.adapter.settings import AdapterLoss, MemorySettings
from querykey.config.parsing import parse_setting
from querykey.errors import ConfigError, MissingPathError
from querykey.losses.by_name import LOSSES, loss_options
from querykey.runs.adapter_settings import AdaptRun, describe_settings, parse_run, read_run

FREE = "score_distillation, score_difference"
KINDS = ", ".join(LOSSES)
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
        AdapterLoss(),
        MemorySettings(),
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
    assert run.loss == AdapterLoss(kind="triplet", options={"margin": 0.2, "mining": "hard"})
    assert run.memory == MemorySettings(kind="in_batch")


def test_settings_without_a_kind_are_about_the_kind_the_fit_chooses():
    for task in ({}, {"labels": "y"}, {"pairs": True}):
        assert read_run(None, ["loss.temperature=0.1"], **task).loss == AdapterLoss(
            options={"temperature": 0.1}
        )
    assert read_run(None, ["memory.capacity=5"]).memory == MemorySettings(capacity=5)


def test_a_bare_kind_is_a_table_with_that_kind():
    run = read_run(None, ["loss=triplet", "loss.margin=0.3", "fc=two_layer", "memory=in_batch"], labels="y")
    assert run.loss == AdapterLoss(kind="triplet", options={"margin": 0.3})
    assert (run.fc.kind, run.memory) == ("two_layer", MemorySettings(kind="in_batch"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("a.b=0.5", 0.5),
        ("a.b=3", 3),
        ("a.b=true", True),
        ("a.b=pca", "pca"),
        ("a.b='x y'", "x y"),
        ("a.b=[1, 2]", [1, 2]),
        ('a.b={ c = "d" }', {"c": "d"}),
        ("a.b=k=v", "k=v"),
        ("a.b=", ""),
        ("a.b=1\nc = 2", "1\nc = 2"),
        (" a.b = 1e-3 ", 1e-3),
    ],
)
def test_a_setting_is_a_toml_literal_or_a_bare_word(setting, value):
    assert parse_setting(setting) == ("a.b", value)
    assert type(parse_setting(setting)[1]) is type(value)


@pytest.mark.parametrize("setting", ["dim", "=3", "a..b=3", ".=1", ""])
def test_a_setting_without_key_or_value_is_refused(setting):
    with pytest.raises(ConfigError, match=r"must be KEY=VALUE, such as loss\.temperature=0\.1"):
        parse_setting(setting)


def test_a_setting_inside_a_number_is_refused():
    with pytest.raises(ConfigError, match=r"steps\.count: steps is 5, so it has no count"):
        read_run(None, ["steps=5", "steps.count=3"])


def test_all_faults_stand_in_one_message():
    raw = {"dim": 0, "temprature": 1.0, "memory": {"kind": "cros_batch"}, "seed": "three", "side": "docs"}
    assert faults(raw) == [
        "dim: must be greater than 0, got 0",
        "side: must be 'both' or 'query', got 'docs'",
        "seed: must be a valid integer, got 'three'",
        "memory.kind: must be 'cross_batch' or 'in_batch', got 'cros_batch'",
        "temprature: no such key; did you mean loss.temperature?",
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"pairs": True, "loss": {"temprature": 1}}, f"loss.temprature: {MEANT} temperature?"),
        (
            {"pairs": True, "loss": {"kind": "nca", "margin": 1}},
            f"loss.margin: {KIND} loss.kind to triplet or circle",
        ),
        ({"stps": 3}, "stps: no such key; did you mean steps?"),
        ({"capacity": 3}, "capacity: no such key; did you mean memory.capacity?"),
        ({"fc": {"strat": "pca"}}, "fc.strat: no such key; did you mean start?"),
        (
            {"memory": {"zzz": 5}},
            "memory.zzz: no such key; there are kind, capacity, holds, sharded, prefill",
        ),
        (
            {"memory": {"kind": "in_batch", "capacity": 5}},
            "memory.capacity: belongs to memory.kind cross_batch",
        ),
        ({"loss": {"kind": "xx"}}, f"loss.kind: no such kind 'xx'; there are {KINDS}"),
        ({"loss": 3}, 'loss: must be a table, such as { kind = "..." }, got 3'),
        ({"selection": 3}, "selection: must be a table, got 3"),
        ({"learning_rate": float("inf")}, "learning_rate: must be a finite number, got inf"),
        ({"dim": 3.5}, "dim: must be a valid integer, got 3.5"),
        ({"pairs": True, "labels": "y"}, "pairs: cannot be fitted together with labels; choose one"),
        ({"loss": "triplet"}, f"loss.kind: triplet needs labels or pairs; without them use one of {FREE}"),
    ],
)
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
    assert parse_run(json.loads(json.dumps(run.as_dict()))) == run


def test_the_list_of_settings_names_every_key_once_a_kind():
    rows = [line.split(maxsplit=1) for line in describe_settings().splitlines() if line[0] != " "]
    said = dict(rows)
    assert said["loss.kind"].startswith("info_nce | nca | decoupled")
    assert said["memory.capacity"] == "whole number"
    assert said["fc.start"].startswith("pca | ")
    assert set(AdaptRun.__dataclass_fields__) == {key.partition(".")[0] for key, _ in rows}
    assert len({tuple(row) for row in rows}) == len(rows)


@pytest.mark.parametrize("name", LOSSES)
def test_the_options_of_a_loss_are_those_of_its_function(name):
    parameters = inspect.signature(getattr(losses, name)).parameters.values()
    own = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    assert set(loss_options()[name]) == own


@pytest.mark.parametrize("word", ["loss=auto", "loss.kind=auto", "fc.start=auto"])
def test_auto_is_what_is_left_out(word):
    assert read_run(None, [word]) == AdaptRun()


def test_a_run_of_version_0_1_is_read():
    """What `querykey adapt` wrote as the settings of run.json: None for what was left out."""
    written = {
        "labels": "species",
        "pairs": False,
        "side": "both",
        "dim": 32,
        "steps": None,
        "held_out": 0.2,
        "patience": 5,
        "seed": 3,
        "loss": {"kind": "auto", "temperature": 0.1},
        "memory": {"kind": "cross_batch", "capacity": 500, "holds": None, "sharded": None},
        "selection": {"sampled": None, "negatives": 8, "positives": None, "neighbours": None},
        "fc": {"kind": None, "start": "auto"},
    }
    run = parse_run(written, warn=False)
    assert (run.labels, run.dim, run.validation_fraction, run.n_iter_no_change) == ("species", 32, 0.2, 5)
    assert run.loss == AdapterLoss(options={"temperature": 0.1})
    assert (run.memory.capacity, run.selection.negatives, run.selection.neighbours) == (500, 8, 10)
    with pytest.warns(FutureWarning, match="held_out is named validation_fraction now"):
        parse_run({"held_out": 0.2})
