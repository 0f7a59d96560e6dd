"""Dense or chunked: chosen once, before the first step, by the size of a look-up, and written down."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from pretraining_toys import DIGITS, TINY

from querykey import pretrain
from querykey.adapter import sampling
from querykey.adapter.fit import fit_adapter
from querykey.adapter.settings import AdapterSettings, resolve
from querykey.adapter.training import describe_fit_memory
from querykey.losses import streaming
from querykey.losses.by_name import objective
from querykey.pretraining import autotune
from querykey.pretraining.settings.memory_plan import describe_memory, look_up_size
from querykey.pretraining.settings.methods import given_settings
from querykey.pretraining.settings.resolve import resolve_settings
from querykey.pretraining.settings.settings import PretrainSettings

WAYS = {
    "simclr": {},
    "simclr, decoupled": {"loss": "decoupled"},
    "moco": {"dictionary.capacity": 64},
    "moco-v3": {},
    "memory-bank": {},
    "memory-bank, info_nce": {"dictionary.contrast": "info_nce", "dictionary.negatives": 20},
    "end-to-end": {},
    "xbm": {"loss": "info_nce", "dictionary.capacity": 64, "dictionary.warm_up": 0.0},
}


@pytest.fixture(autouse=True)
def _measured_at_once(monkeypatch):
    monkeypatch.setattr(autotune, "TRIALS", 1)
    monkeypatch.setattr(autotune, "STEADY_TRIALS", 1)


@pytest.mark.parametrize(("way", "form"), [*((way, "chunked") for way in WAYS), ("simclr", "dense")])
def test_a_run_computes_its_loss_in_the_form_that_it_wrote_down(way, form, tmp_path, monkeypatch):
    """For the largest look-up of its steps, of which the plan before the first step knows the size."""
    seen = []
    for name in ("info_nce", "decoupled"):
        module = sys.modules[f"querykey.losses.{name}"]

        def watched(lookup, form, known=streaming.takes_chunked):
            if len(lookup) > 1:  # options are checked on one query
                seen.append((len(lookup), len(lookup.keys), form))
            return known(lookup, form)

        monkeypatch.setattr(module, "takes_chunked", watched)
    if form == "chunked":
        monkeypatch.setattr(streaming, "CHUNKED_FROM", 1)
        monkeypatch.setattr(streaming, "CHUNKED_FROM_OF_VIEWS", 1)
    method = way.partition(",")[0]
    done = pretrain(DIGITS, out=tmp_path / "run", **TINY | {"steps": 3, "method": method} | WAYS[way])
    written = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert written["loss"]["form"] == form
    if form == "dense":  # said so, a loss does not look at sizes
        assert not seen
        return
    assert {form for *_, form in seen} == {form}
    assert max(rows[:2] for rows in seen) == look_up_size(done.settings, items=1797 - 40)


def resolved(**given):
    return resolve_settings(given_settings(**given), images=50_000, channels=3, side=32)


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({"method": "simclr", "batch_size": 256}, "dense"),
        ({"method": "simclr", "batch_size": 4096}, "chunked"),
        ({"method": "simclr", "batch_size": 4096, "loss.form": "dense"}, "dense"),
        ({"method": "simclr", "batch_size": 4, "loss.form": "chunked"}, "chunked"),
        ({"method": "moco", "dictionary.capacity": 4096}, "dense"),
        ({"method": "moco", "dictionary.capacity": 65536}, "chunked"),
        ({"method": "memory-bank"}, "chunked"),
        ({"method": "memory-bank", "dictionary.contrast": "info_nce"}, "dense"),
        ({"method": "xbm"}, None),
        ({"method": "simclr", "loss": "nt_logistic"}, None),
    ],
)
def test_settings_say_which_form(given, form):
    """None where the loss has one alone; a form that was asked for stays."""
    settings = resolved(**given)
    assert settings.loss.options.get("form") == form
    assert PretrainSettings.from_dict(settings.as_dict()) == settings


def test_a_run_without_a_stored_form_chooses_by_size():
    kept = resolved(method="simclr").as_dict()
    del kept["loss"]["form"]
    assert "form" not in PretrainSettings.from_dict(kept).loss.options


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"method": "simclr", "batch_size": 256},
            "memory: loss about 6 MiB (dense, 512 x 512 scores)",
        ),
        (
            {"method": "simclr", "batch_size": 16384},
            "memory: loss about 109 MiB (chunked, 32,768 x 32,768 scores)",
        ),
        (
            {"method": "moco", "dictionary.capacity": 65536},
            "memory: loss about 109 MiB (chunked, 256 x 65,792 scores), dictionary 32 MiB",
        ),
        (
            {"method": "memory-bank"},
            "memory: loss about 86 MiB (chunked, 256 x 50,000 scores), dictionary 24 MiB",
        ),
    ],
)
def test_the_memory_estimate_is_shown_before_the_first_step(given, words):
    assert describe_memory(resolved(**given), items=50_000, width=128) == words
    assert len(words) <= 78


@pytest.mark.parametrize(
    ("given", "scores", "dictionary"),
    [
        ({"method": "moco", "dictionary.capacity": 65536}, "256 x 8,448 scores", 4),
        ({"method": "memory-bank"}, "256 x 6,250 scores", 3),
        ({"method": "xbm", "dictionary.capacity": 80_000}, "256 x 10,000 scores", 4),
    ],
)
def test_the_memory_estimate_is_of_the_local_shard_of_a_dictionary(given, scores, dictionary):
    words = describe_memory(
        resolved(**given, **{"dictionary.sharded": True}), items=50_000, width=128, processes=8
    )
    assert scores in words
    assert words.endswith(f"dictionary {dictionary} MiB")


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ({}, None),
        ({"capacity": 100}, None),
        ({"memory": "in_batch"}, None),
        ({"loss": "score_difference", "neighbours": 3}, None),
        ({"loss": "info_nce", "negatives": 2, "positives": 1, "sampled": 10}, 40),
        ({"loss": "nca"}, 3),
    ],
)
def test_the_memory_estimate_of_a_fit_uses_its_look_up_sizes(given, labels, monkeypatch):
    """Of a union of selected rows, each once, it is the most that it can be."""
    sizes = []

    def watched(name, **options):
        made = objective(name, **options)

        def loss(lookup, *target):
            sizes.append((len(lookup), len(lookup.keys)))
            return made.loss(lookup, *target)

        return replace(made, loss=loss)

    monkeypatch.setattr(sampling, "objective", watched)
    vectors = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    classes = None if labels is None else torch.arange(200) % labels
    settings = AdapterSettings.from_parameters(dim=4, steps=3, batch_size=32, **given)
    told = []

    def begin(words):
        if words.startswith("memory"):
            assert sizes == []  # before the first step
            told.append(words)

    fit_adapter(vectors, settings, labels=classes, begin=begin)
    (words,) = told
    queries, keys = map(int, re.search(r"([\d,]+) x ([\d,]+) scores", words).groups())
    assert {rows for rows, _ in sizes} == {queries} == {32}
    largest = max(held for _, held in sizes)
    assert 0.6 * keys <= largest <= keys <= 32 + 200  # of a fold, or of all rows


def test_the_memory_estimate_of_a_fit_uses_the_requested_form():
    settings = AdapterSettings.from_parameters(loss="info_nce", loss_options={"form": "chunked"}, dim=256)
    resolved = resolve(settings, task="labels", items=20_000, width=512)
    words = describe_fit_memory(resolved, items=20_000, width=512)
    assert words == "memory: loss about 13 MiB (chunked, 128 x 2,176 scores), features 39 MiB"
