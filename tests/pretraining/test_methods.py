"""Every method of pretraining as a whole: the same bits, stopped and resumed, and what each refuses."""

from pathlib import Path

import pytest
import torch
from pretraining_toys import DIGITS, TINY, after, metrics

from querykey import pretrain, resume
from querykey.config.settings import flat
from querykey.errors import ConfigError, RangeError
from querykey.io.records import read
from querykey.pretraining import autotune
from querykey.pretraining.checkpoint import latest_checkpoint
from querykey.pretraining.settings.methods import METHODS, PRESETS, given_settings
from querykey.pretraining.settings.resolve import resolve_settings

WAYS = {
    "moco": {"method": "moco"},
    "moco, symmetric": {
        "method": "moco",
        "key_encoder.symmetric": True,
        "dictionary.start": "random",
        "dictionary.same_id": "negative",
        "loss.learned_temperature": True,
    },
    "moco-v2": {"method": "moco-v2", "dictionary.capacity": 50},
    "moco-v3": {"method": "moco-v3"},
    "moco-v3, learned": {"method": "moco-v3", "loss.learned_temperature": True},
    "memory-bank": {"method": "memory-bank"},
    "memory-bank, nce": {
        "method": "memory-bank",
        "dictionary.contrast": "nce",
        "dictionary.negatives": 20,
        "dictionary.proximal": 0.1,
    },
    "end-to-end": {"method": "end-to-end"},
    "end-to-end, shared": {"method": "end-to-end", "key_encoder.separate": False},
    "xbm": {
        "method": "xbm",
        "dictionary.warm_up": 0.5,
        "dictionary.align": "kalman",
        "dictionary.capacity": 100,
    },
}
STATE = {"queue": "dictionary.vectors", "bank": "dictionary.written", "key_encoder.momentum": "key_encoder"}


@pytest.fixture(autouse=True)
def _measured_at_once(monkeypatch):
    monkeypatch.setattr(autotune, "TRIALS", 1)
    monkeypatch.setattr(autotune, "STEADY_TRIALS", 1)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_run_ends_with_the_bits_of_one_that_never_stopped(way, tmp_path):
    settings = TINY | {"steps": 6} | WAYS[way]
    whole, split_data = tmp_path / "whole", tmp_path / "parted"
    state = torch.get_rng_state()
    done = pretrain(DIGITS, out=whole, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    half = pretrain(DIGITS, out=split_data, stop=after(3), **settings)
    assert (half.report["steps_taken"], half.is_finished) == (3, False)
    ended = resume(split_data)
    assert ended.is_finished
    one, other = (latest_checkpoint(folder / "checkpoints").tensors for folder in (whole, split_data))
    assert equal(one, other)
    assert (whole / "encoder.safetensors").read_bytes() == (split_data / "encoder.safetensors").read_bytes()
    assert metrics(whole) == metrics(split_data)
    assert done.settings.method == ended.settings.method == WAYS[way]["method"]
    has_dictionary = done.settings.method in ("moco", "moco-v2", "memory-bank", "xbm")
    assert ("model.dictionary.vectors" in one) == has_dictionary


IN_PARTS = {"moco": {"batch_norm": "device"}, "moco-v2": {"batch_norm": "device"}}
"""What differs from the defaults of a method where these cannot be computed in parts."""


@pytest.mark.parametrize("method", sorted({*METHODS} - {"end-to-end"}))
def test_a_run_in_chunks_takes_the_steps_of_whole_batches(method):
    settings = (
        TINY | {"method": method, "steps": 3, "batch_size": 33, "num_evals": 1} | IN_PARTS.get(method, {})
    )
    whole, parts = pretrain(DIGITS, **settings), pretrain(DIGITS, **settings, chunks=4)
    assert parts.report["end"]["loss"] == pytest.approx(whole.report["end"]["loss"], abs=1e-5)
    expected = whole.encoder.encoder.state_dict()
    for name, value in parts.encoder.encoder.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-5, msg=name)


def test_end_to_end_takes_its_batch_whole():
    with pytest.raises(ConfigError, match="a step with two encoders takes its batch whole, got chunks=4"):
        pretrain(DIGITS, **TINY, method="end-to-end", steps=1, chunks=4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_reports_what_is_looked_up_and_held(method):
    run = pretrain(DIGITS, **TINY | {"method": method, "steps": 8, "num_evals": 1})
    end = run.report["end"]
    assert end["candidates"] > 1
    assert 0 <= end["pretext"] <= 1
    assert end["knn_queries"] == 40
    if method in ("moco", "moco-v2"):
        assert end["candidates"] == 1 + min(run.settings.dictionary.capacity, 7 * 32)
        assert end["fill"] == 1.0
        assert end["age_max"] == run.settings.dictionary.capacity // 32 - 1
        assert end["drift_1"] == 0.0  # the key encoder has not followed since
        assert 0 < end["drift_2"] < end["drift_4"] < 1
    elif method == "memory-bank":
        assert end["candidates"] == 1757  # every image but those held out
        assert end["age_max"] == 7
    elif method == "xbm":
        assert end["fill"] == 1.0
        assert end["drift_1"] > 0  # the encoder has taken a step since
    else:
        assert "fill" not in end
    assert end["candidates"] == {"simclr": 63, "moco-v3": 32, "end-to-end": 32}.get(method, end["candidates"])


class Dropping(torch.nn.Module):
    """A backbone of one's own that draws numbers in train mode."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 8))

    def forward(self, images):
        return self.inner(images)


def dropping():
    """For `module:factory`."""
    return Dropping()


@pytest.mark.parametrize("method", ["memory-bank", "xbm"])
def test_what_fills_a_dictionary_draws_from_the_runs_own_seed(method, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    settings = TINY | {
        "method": method,
        "steps": 3,
        "backbone": "test_methods:dropping",
        "batch_norm": "device",
    }
    kept = []
    for number in (1, 2):
        torch.manual_seed(number)
        state = torch.get_rng_state()
        pretrain(DIGITS, out=tmp_path / str(number), **settings)
        assert torch.equal(torch.get_rng_state(), state)
        kept.append(latest_checkpoint(tmp_path / str(number) / "checkpoints").tensors)
    assert equal(*kept)
    assert metrics(tmp_path / "1") == metrics(tmp_path / "2")


def test_each_warning_is_shown_once(monkeypatch):
    monkeypatch.setattr("querykey.pretraining.run.EARLY", 1)
    told = []
    pretrain(
        DIGITS,
        notify=told.append,
        **TINY | {"method": "moco", "steps": 6, "num_evals": 3, "key_encoder.momentum": 0.999},
    )
    assert any("momentum 0.999 has a half-life of 693 steps, and the run has 6" in word for word in told)
    off = [word.split(": ")[1][:12] for word in told if word.startswith("step ")]
    assert off
    assert len(off) == len(set(off))


def test_evaluations_change_no_state(tmp_path):
    settings = TINY | {"method": "moco", "steps": 6}
    often, never = tmp_path / "often", tmp_path / "never"
    pretrain(DIGITS, out=often, **settings | {"num_evals": 6})
    pretrain(DIGITS, out=never, **settings | {"num_evals": 0})
    one, other = (latest_checkpoint(folder / "checkpoints").tensors for folder in (often, never))
    assert equal(one, other)
    looks = [record["step"] for record in read(often / "metrics.jsonl") if record["kind"] == "look"]
    assert looks == [0, 1, 2, 3, 4, 5, 6]


def test_xbm_needs_labels(tmp_path):
    import numpy as np
    from PIL import Image

    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    with pytest.raises(ConfigError, match=r"xbm learns from labels, and .* has none"):
        pretrain(tmp_path, method="xbm", steps=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "mocha"}, "method 'mocha' is not known; there are simclr, moco"),
        (
            {"method": "simclr", "key_encoder.momentum": 0.9},
            "simclr has no key_encoder.momentum; it belongs to moco, moco-v2, moco-v3",
        ),
        (
            {"method": "moco", "dictionary.contrast": "nce"},
            "moco has no dictionary.contrast; it belongs to memory-bank",
        ),
        ({"method": "moco", "momentums": 1}, "momentums: no such key; did you mean dictionary.momentum?"),
    ],
)
def test_a_setting_of_another_method_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        given_settings(given.pop("method"), **given)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"key_encoder.momentum": 1.5}, RangeError, "key_encoder.momentum: must be at most 1.0, got 1.5"),
        ({"dictionary.capacity": 0}, RangeError, "dictionary.capacity: must be greater than 0, got 0"),
        (
            {"dictionary.start": "full"},
            ConfigError,
            "dictionary.start: must be 'empty' or 'random', got 'full'",
        ),
        (
            {"batch_size": 12},
            RangeError,
            "split batch norm of 8 groups needs batches of 16 images or more, got 12",
        ),
        ({"chunks": 2}, ConfigError, "chunks cannot be cut across split batch norm's groups"),
    ],
)
def test_contradictory_settings_are_refused(given, error, said):
    with pytest.raises(error, match=said):
        resolve_settings(given_settings("moco", **given), images=5000, channels=3, side=32)


def test_a_queue_is_a_power_of_two_well_below_the_images():
    for images, capacity in ((49_000, 4096), (2_000_000, 65_536), (3000, 512), (1200, 512)):
        settings = resolve_settings(given_settings("moco"), images=images, channels=3, side=32)
        assert settings.dictionary.capacity == capacity
    small = resolve_settings(given_settings("moco"), images=100, channels=3, side=32)
    assert small.batch_size == 96  # whole groups of batch norm
    assert (
        resolve_settings(given_settings("xbm"), images=3000, channels=3, side=32).dictionary.capacity == 3000
    )


def test_the_authors_recipe_for_cifar():
    made = given_settings(preset="moco-cifar")
    assert flat(made.as_dict()).items() >= PRESETS["moco-cifar"].items()
    settings = resolve_settings(made, images=50_000, channels=3, side=32)
    assert (settings.dictionary.capacity, settings.key_encoder.momentum, settings.loss.temperature) == (
        4096,
        0.99,
        0.1,
    )
    assert (settings.optimizer.learning_rate, settings.batch_norm.groups, settings.head.kind) == (
        0.06,
        8,
        "linear",
    )
    shorter = given_settings(preset="moco-cifar", minutes=5.0, key_encoder={"momentum": 0.9})
    assert (shorter.minutes, shorter.epochs, shorter.key_encoder.momentum) == (5.0, None, 0.9)
    with pytest.raises(ConfigError, match="preset moco-cifar is for moco, and method is simclr"):
        given_settings("simclr", "moco-cifar")
    with pytest.raises(ConfigError, match="preset 'cifar' is not known"):
        given_settings(preset="cifar")
