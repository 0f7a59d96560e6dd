"""What a step costs is measured before the first one, and a run's length follows from it."""

import json
import time

import pytest
import torch
from pretraining_toys import DIGITS, TINY, after

from querykey import pretrain, resume
from querykey.io.measured import recall, remember
from querykey.pretraining import autotune
from querykey.pretraining.autotune import calibrate
from querykey.pretraining.learner import Learner
from querykey.pretraining.time_budget import Costs

CPU = torch.device("cpu")


class Clock:
    """A `perf_counter` that steps move on by what they are said to cost."""

    def __init__(self, costs):
        self.now, self.costs, self.taken = 0.0, costs, []

    def step(self, precision, layout):
        self.taken.append((precision, layout))
        self.now += self.costs[precision, layout]


@pytest.fixture
def measured(monkeypatch):
    def measure(costs, *, precision="auto", layout="auto", fast=True, **given):
        clock = Clock({(kind, order): seconds for (kind, order), seconds in zip(CHOICES, costs, strict=True)})
        monkeypatch.setattr(autotune.time, "perf_counter", lambda: clock.now)
        monkeypatch.setattr(autotune, "_has_fast_bfloat16", lambda _: fast)
        return calibrate(clock.step, precision=precision, layout=layout, device=CPU, **given), clock

    return measure


CHOICES = [
    (kind, order) for kind in (torch.float32, torch.bfloat16) for order in ("contiguous", "channels_last")
]


@pytest.mark.parametrize(
    ("costs", "chosen"),
    [
        ((4.0, 3.0, 2.0, 1.0), ("bfloat16", "channels_last")),
        ((1.0, 2.0, 3.0, 4.0), ("float32", "contiguous")),
        ((3.0, 2.0, 4.0, 4.0), ("float32", "channels_last")),
        ((1.0, 0.86, 0.86, 0.86), ("float32", "contiguous")),  # within 15%: the default
        ((1.0, 0.84, 0.82, 0.80), ("bfloat16", "channels_last")),
    ],
)
def test_the_fastest_is_chosen_if_it_clearly_beats_the_default(measured, costs, chosen):
    found, _ = measured(costs)
    assert (found.precision, found.layout) == chosen
    names = [f"{str(kind).removeprefix('torch.')} {order}" for kind, order in CHOICES]
    assert found.tried == pytest.approx(dict(zip(names, costs, strict=True)))
    assert found.seconds == pytest.approx(found.tried[" ".join(chosen)])


def test_other_work_that_meets_one_choice_does_not_decide(monkeypatch):
    """Four times as slow for a while: the arms are taken in turns, and the shortest of each counts."""
    clock, busy = Clock(dict(zip(CHOICES, (4.0, 4.0, 1.0, 1.2), strict=True))), range(4, 8)

    def step(precision, layout):
        clock.step(precision, layout)
        clock.now += 3 * clock.costs[precision, layout] * (len(clock.taken) - 1 in busy)

    monkeypatch.setattr(autotune.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(autotune, "_has_fast_bfloat16", lambda _: True)
    found = calibrate(step, precision="auto", layout="auto", device=CPU)
    assert (found.precision, found.layout) == ("bfloat16", "contiguous")
    assert list(found.tried.values()) == pytest.approx([4.0, 4.0, 1.0, 1.2])
    assert clock.taken[:8] == [choice for choice in CHOICES for _ in range(2)]


CONDITIONS = {"choice": "a test", "batch": 8}


def test_a_choice_is_measured_once_and_holds_under_another_load(measured, tmp_path, monkeypatch):
    monkeypatch.setenv("QUERYKEY_CACHE", str(tmp_path / "cache"))
    first, clock = measured((4.0, 3.0, 2.0, 1.0), conditions=CONDITIONS)
    assert len(clock.taken) == 4 * 2 * autotune.TRIALS
    loaded = (1.0, 2.0, 3.0, 4.0)  # the other way round
    again, clock = measured(loaded, conditions=CONDITIONS)
    assert (again.precision, again.layout) == (first.precision, first.layout) == ("bfloat16", "channels_last")
    assert again.tried == first.tried
    assert again.seconds == 4.0  # as it is now
    assert set(clock.taken) == {(torch.bfloat16, "channels_last")}
    other, _ = measured(loaded, conditions=CONDITIONS | {"batch": 9})
    assert (other.precision, other.layout) == ("float32", "contiguous")


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"KEY": {"answer": ["float16", "contiguous", {}]}}'])
def test_a_cache_of_nonsense_is_measured_again(measured, tmp_path, monkeypatch, text):
    monkeypatch.setenv("QUERYKEY_CACHE", str(tmp_path))
    remember(CONDITIONS, None)
    (key,) = json.loads((tmp_path / "measured.json").read_text())
    (tmp_path / "measured.json").write_text(text.replace("KEY", key))
    found, _ = measured((1.0, 2.0, 3.0, 4.0), conditions=CONDITIONS)
    assert (found.precision, found.layout) == ("float32", "contiguous")
    assert recall(CONDITIONS)[:2] == ["float32", "contiguous"]


def test_a_cache_that_cannot_be_written_is_no_error(measured, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUERYKEY_CACHE", str(tmp_path / "file" / "cache"))
    found, _ = measured((4.0, 3.0, 2.0, 1.0), conditions=CONDITIONS)
    assert found.precision == "bfloat16"
    assert recall(CONDITIONS) is None


def test_two_runs_of_one_seed_have_the_same_bits_whatever_the_cache_holds(tmp_path, monkeypatch):
    """Empty, then present under a load that would have chosen otherwise."""
    monkeypatch.setenv("QUERYKEY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(autotune, "_has_fast_bfloat16", lambda _: False)
    given = {name: value for name, value in TINY.items() if name != "precision"}
    for name, slow in (("empty", "contiguous"), ("present", "channels_last")):
        seconds = [2.0, 1.0] if slow == "contiguous" else [1.0, 2.0]
        monkeypatch.setattr(
            autotune, "_shortest_in_turns", lambda steps, *_, seconds=seconds: seconds[: len(steps)]
        )
        run = pretrain(
            DIGITS, out=tmp_path / name, steps=2, **given | {"precision": "auto", "layout": "auto"}
        )
        assert (run.settings.precision, run.settings.layout) == ("float32", "channels_last")
    one, other = ((tmp_path / name / "encoder.safetensors").read_bytes() for name in ("empty", "present"))
    assert one == other


def test_the_choice_is_made_on_few_images_and_the_whole_step_is_timed(monkeypatch):
    whole, few = [], []
    clock = Clock(dict(zip(CHOICES, (4.0, 3.0, 2.0, 1.0), strict=True)))

    def step(precision, layout):
        whole.append((precision, layout))
        clock.now += 10.0

    def choice_step(precision, layout):
        few.append((precision, layout))
        clock.step(precision, layout)

    monkeypatch.setattr(autotune.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(autotune, "_has_fast_bfloat16", lambda _: True)
    given = {"device": CPU, "choice_step": choice_step}
    found = calibrate(step, precision="auto", layout="auto", **given)
    assert (found.precision, found.layout, found.seconds) == ("bfloat16", "channels_last", 10.0)
    assert len(few) == 4 * 2 * autotune.TRIALS == 24
    assert set(whole) == {(torch.bfloat16, "channels_last")}
    few.clear()
    calibrate(step, precision="float32", layout="contiguous", **given)
    assert not few


@pytest.mark.parametrize("method", ["simclr", "moco", "memory-bank", "xbm"])
def test_a_step_on_few_images_is_one_of_each_method(method, monkeypatch):
    sizes = []
    monkeypatch.setattr(autotune, "CHOICE_IMAGES", 16)
    monkeypatch.setattr(autotune, "_has_fast_bfloat16", lambda _: False)
    step = Learner.training_step

    def watched(learner, number, batch, *given):
        sizes.append((len(batch.view_1), len(batch.ids)))
        return step(learner, number, batch, *given)

    monkeypatch.setattr(Learner, "training_step", watched)
    given = {name: value for name, value in TINY.items() if name != "precision"}
    run = pretrain(DIGITS, steps=1, method=method, **given | {"precision": "auto", "layout": "auto"})
    assert sizes[: 2 * 2 * autotune.TRIALS] == 12 * [(16, 16)]
    assert set(sizes[12:]) == {(run.settings.batch_size,) * 2}


@pytest.mark.parametrize("method", ["moco", "xbm"])
def test_minutes_follow_a_choice_on_few_images(method, monkeypatch):
    """The trial measures the drift of the dictionary: rows of the choice are of none of its steps."""
    monkeypatch.setattr(autotune, "CHOICE_IMAGES", 16)
    monkeypatch.setattr(autotune, "_has_fast_bfloat16", lambda _: False)
    monkeypatch.setattr(autotune, "TRIALS", 1)
    monkeypatch.setattr(Costs, "steps_in", lambda *_, **__: 1)
    given = {name: value for name, value in TINY.items() if name not in ("precision", "num_evals")}
    run = pretrain(
        DIGITS, minutes=0.1, method=method, **given | {"precision": "auto", "layout": "auto", "num_evals": 1}
    )
    assert run.report["steps_taken"] == 1


def test_given_choices_are_not_measured(measured):
    found, clock = measured((4.0, 3.0, 2.0, 1.0), precision="float32", layout="contiguous")
    assert (found.precision, found.layout) == ("float32", "contiguous")
    assert set(clock.taken) == {(torch.float32, "contiguous")}
    found, clock = measured((4.0, 3.0, 2.0, 1.0), fast=False)
    assert found.precision == "float32"
    assert {kind for kind, _ in clock.taken} == {torch.float32}


def test_a_slow_step_is_measured_few_times(measured):
    _, clock = measured((60.0, 60.0, 60.0, 60.0), precision="float32", layout="contiguous")
    assert len(clock.taken) <= 2 * autotune.TRIALS


def test_the_order_with_less_time_is_chosen_by_the_clock():
    naps = {"contiguous": 0.02, "channels_last": 0.002}
    found = calibrate(
        lambda _, layout: time.sleep(naps[layout]), precision="float32", layout="auto", device=CPU
    )
    assert found.layout == "channels_last"
    assert 0.002 <= found.seconds < found.tried["float32 contiguous"]


def test_minutes_become_steps_before_step_0_and_a_resumed_run_keeps_them(tmp_path, monkeypatch):
    calls = []

    def instead(*_, **__):
        calls.append(1)
        return Costs(step=0.5, evaluation=0.25)

    monkeypatch.setattr(autotune, "_costs", instead)
    begun = []
    run = pretrain(
        DIGITS, out=tmp_path / "run", minutes=0.2, on_fit_start=begun.append, stop=after(2), **TINY
    )
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    steps = begun[0].steps
    assert 1 <= steps <= 0.98 * 12 / 0.5
    assert run.settings.steps == described["settings"]["steps"] == steps
    assert described["settings"]["minutes"] == described["asked"]["minutes"] == 0.2
    assert described["settings"]["epochs"] == pytest.approx(steps / (1618 // 32), rel=0.1)
    assert described["calibration"]["seconds"] == 0.5
    assert described["calibration"]["evaluation_seconds"] == 0.25
    assert described["asked"]["precision"] == "float32"
    resumed = resume(tmp_path / "run", on_fit_start=begun.append)
    assert resumed.settings.steps == begun[1].steps == steps
    assert resumed.report["steps_taken"] == steps
    assert len(calls) == 1


def test_the_trial_steps_leave_no_trace(tmp_path, monkeypatch):
    """Weights, batch norm and torch's generator are as if nothing had been measured."""
    folders = [tmp_path / "once", tmp_path / "often"]
    for folder, trials in zip(folders, (1, 5), strict=True):
        monkeypatch.setattr(autotune, "TRIALS", trials)
        monkeypatch.setattr(autotune, "STEADY_TRIALS", trials)
        state = torch.get_rng_state()
        pretrain(DIGITS, out=folder, steps=2, **TINY)
        assert torch.equal(torch.get_rng_state(), state)
    one, other = ((folder / "encoder.safetensors").read_bytes() for folder in folders)
    assert one == other
