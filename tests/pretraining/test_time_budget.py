"""Minutes become steps: everything that a run does besides them is counted, by a clock that costs move on."""

from types import SimpleNamespace

import pytest
from pretraining_toys import DIGITS, TINY

from querykey import pretrain
from querykey.pretraining import autotune, images, time_budget, trainer
from querykey.pretraining.learner import Learner
from querykey.pretraining.run import TrainingRun
from querykey.pretraining.time_budget import Costs, steady_limit
from querykey.runs import pretrain as runs
from querykey.runs import pretrain_folder

COSTS = {
    "build": 3.0, "step": 3.0, "views": 0.5, "evaluation": 4.0, "lookup": 1.0, "checkpoint": 1.5,
    "encoder": 0.75,
}  # fmt: skip
MINUTES, EVALUATIONS, SAVE_EVERY = 2.0, 2, 25.0


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what the parts of a run are said to cost, which it counts."""
    now, counts = [0.0], dict.fromkeys(COSTS, 0)

    def costing(part, call):
        def run(*given, **options):
            now[0] += COSTS[part]
            counts[part] += 1
            return call(*given, **options)

        return run

    def walk(*given, **options):
        for batch in real_walk(*given, **options):
            now[0] += COSTS["views"]
            counts["views"] += 1
            yield batch

    real_walk = images.TrainingImages.walk
    fake = SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0])
    for module in (autotune, images, runs, trainer):
        monkeypatch.setattr(module, "time", fake)
    monkeypatch.setattr(images.TrainingImages, "walk", walk)
    for part, places in {
        "build": ((autotune, "build_run"), (runs, "build_run")),
        "step": ((Learner, "training_step"),),
        "evaluation": ((TrainingRun, "evaluate"),),
        "lookup": ((TrainingRun, "lookup_metrics"),),
        "checkpoint": ((time_budget, "write_checkpoint"), (pretrain_folder, "write_checkpoint")),
        "encoder": ((time_budget, "put_encoder"), (pretrain_folder, "put_encoder")),
    }.items():
        for place, name in places:
            monkeypatch.setattr(place, name, costing(part, getattr(place, name)))
    return SimpleNamespace(now=now, counts=counts)


METHODS = {
    "simclr": {},
    "moco": {"dictionary.capacity": 256},
    "memory-bank": {"dictionary.prefill": True},
    "xbm": {"dictionary.capacity": 512, "dictionary.warm_up": 0.3},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_takes_the_minutes_that_were_asked_for(clock, tmp_path, method):
    """Views, lookups, evaluations, checkpoints, a dictionary's filling and the last files count."""
    given = TINY | METHODS[method] | {"num_evals": EVALUATIONS, "minutes": MINUTES, "method": method}
    run = pretrain(DIGITS, out=tmp_path / "run", save_every=SAVE_EVERY, **given)
    assert run.report["steps_taken"] == run.settings.steps
    assert 0.95 * 60 * MINUTES <= clock.now[0] <= 60 * MINUTES
    assert clock.counts["evaluation"] == 2 + EVALUATIONS  # two are timed before
    assert clock.counts["checkpoint"] >= 3 + 60 * (MINUTES - 1) // (SAVE_EVERY + 8)


def test_a_run_ends_by_steps_however_long_they_take(clock, monkeypatch):
    """The machine is ten times slower after the trial: as many steps."""
    given = TINY | {"num_evals": 0, "minutes": 1.0}
    slow = []

    def on_fit_start(run):
        slow.append(run.steps)
        monkeypatch.setitem(COSTS, "step", 10 * COSTS["step"])

    run = pretrain(DIGITS, on_fit_start=on_fit_start, **given)
    assert [run.report["steps_taken"]] == slow
    assert clock.now[0] > 240.0


@pytest.mark.parametrize(
    ("seconds", "costs", "evaluations", "save_every", "steps"),
    [
        (100.0, Costs(step=1.0), 10, 60.0, 98),
        (100.0, Costs(step=1.0, evaluation=1.8), 10, 60.0, 80),
        (100.0, Costs(step=0.5, evaluation=1.8), 10, 60.0, 160),
        (100.0, Costs(step=1.0, once=48.0), 0, 60.0, 50),
        (100.0, Costs(step=1.0, checkpoint=3.0), 0, 0.0, 24),  # one after each step
        (100.0, Costs(step=1.0, checkpoint=10.0), 0, 10.0, 49),
        (100.0, Costs(step=9.0, evaluation=5.0), 10, 60.0, 7),  # each step is evaluated
        (1.0, Costs(step=5.0), 0, 60.0, 1),
        (-3.0, Costs(step=1.0, evaluation=9.0), 10, 60.0, 1),
    ],
)
def test_steps_fill_the_time_that_the_rest_leaves(seconds, costs, evaluations, save_every, steps):
    found = costs.steps_in(seconds, evaluations=evaluations, save_every=save_every)
    assert found == steps
    total = costs.total(found, evaluations=evaluations, save_every=save_every)
    assert total <= max(0.98 * seconds, costs.step + costs.evaluation)


def test_steps_are_measured_for_a_share_of_the_time():
    assert steady_limit(60.0) == pytest.approx(1.8)
    assert steady_limit(3600.0) == 10.0
    assert steady_limit(-1.0) == 0.0
