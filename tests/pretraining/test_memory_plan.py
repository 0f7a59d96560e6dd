"""What a run is told before it begins: a dictionary that is too large, too small, or never full."""

import pytest

from querykey.pretraining.settings.memory_plan import dictionary_concerns
from querykey.pretraining.settings.methods import given_settings
from querykey.pretraining.settings.resolve import resolve_settings


def concerns(*, items=50_000, steps=1200, **given):
    settings = resolve_settings(given_settings(**given), images=items, channels=3, side=32)
    return dictionary_concerns(settings, items=items, steps=steps)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dictionary.capacity": 60_000}, "about 0.7 older keys of each query's own item"),
        (
            {"dictionary.capacity": 64},
            "a queue of 64 keys holds the last of the 256 that a step makes; raise",
        ),
        (
            {"dictionary.capacity": 511, "key_encoder.symmetric": True},
            "holds the last of the 512 that a step makes",
        ),
        (
            {"dictionary.capacity": 4096, "steps": 15, "key_encoder.momentum": 0.9},
            "a queue of 4,096 keys is not full after 15 steps of 256; lower",
        ),
        (
            {"key_encoder.momentum": 0.9999},
            "has a half-life of 6,931 steps, and the run has 1,200; lower",
        ),
    ],
)
def test_what_will_make_a_run_worse_is_said_with_its_numbers(given, words):
    (said,) = concerns(method="moco", **given)
    assert words in said


@pytest.mark.parametrize(
    "given",
    [
        {"dictionary.capacity": 4096},
        {"dictionary.capacity": 256},
        {"dictionary.capacity": 512, "key_encoder.symmetric": True},
        {"key_encoder.momentum": 0.999},
    ],
)
def test_nothing_is_said_of_what_is_well(given):
    assert concerns(method="moco", **given) == []
    assert concerns(method="simclr") == []
