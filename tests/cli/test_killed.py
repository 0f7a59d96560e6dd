"""A few of the moments at which `make soak` kills a run (tests/soak/soak_resume.py)."""

import random
import signal
import sys

import pytest
from killing import Moment, Warm, assert_same_run, kill_until_it_ends, timed
from pretraining_toys import put_stripes, small_run

from querykey.cli.errors import STOPPED
from querykey.pretraining.checkpoint import latest_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
STEPS = 12


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    runner = Warm(tmp_path_factory.mktemp("warm"))
    put_stripes(runner.folder / "images", count=32)
    yield runner
    runner.close()


@pytest.mark.parametrize("method", ["moco", "xbm"])
def test_a_killed_run_ends_with_every_bit_of_one_that_was_not(method, warm):
    whole, run = warm.folder / f"{method}-whole", warm.folder / f"{method}-killed"
    life = timed(warm, *small_run("images", whole, method, steps=STEPS))
    begin = small_run("images", run, method, steps=STEPS)
    kill_until_it_ends(warm, begin, run, draw=random.Random(method), life=life, kills=2, steps=STEPS)
    assert_same_run(whole, run, steps=STEPS)


@pytest.mark.parametrize("call", [9, 40])
def test_a_run_that_dies_at_a_call_that_writes_goes_on_or_is_not_there(call, warm):
    run, whole = warm.folder / f"call-{call}", warm.folder / "whole"
    if not whole.exists():
        timed(warm, *small_run("images", whole, "simclr", steps=2))
    begin = small_run("images", run, "simclr", steps=2)
    assert warm.run(*begin, die_at=call) == -signal.SIGKILL
    is_there = (run / "run.json").exists()
    assert is_there == run.exists() == (call == 40)
    again = ("resume", run, "--threads", 1) if is_there else begin
    assert warm.run(*again) == 0, warm.log.read_text()
    assert_same_run(whole, run, steps=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(number, warm):
    run, whole = warm.folder / f"asked-{number}", warm.folder / "moco-v3-whole"
    if not whole.exists():
        timed(warm, *small_run("images", whole, "moco-v3", steps=STEPS))
    begin = small_run("images", run, "moco-v3", steps=STEPS)
    moment = Moment(0.0, run / "checkpoints" / "step-000000002.json", (number,))
    assert warm.run(*begin, moment=moment) == STOPPED
    last = warm.log.read_text().splitlines()[-1]
    kept = latest_checkpoint(run / "checkpoints").step
    assert 2 <= kept < STEPS
    assert last == f"note: stopped after step {kept}; continue with: querykey resume {run}"
    assert warm.run("resume", run, "--threads", 1) == 0
    assert_same_run(whole, run, steps=STEPS)


def test_a_run_that_is_asked_twice_stops_at_once_and_goes_on_from_what_was_kept(warm):
    run, whole = warm.folder / "twice", warm.folder / "moco-v3-whole"
    if not whole.exists():
        timed(warm, *small_run("images", whole, "moco-v3", steps=STEPS))
    begin = small_run("images", run, "moco-v3", steps=STEPS)
    moment = Moment(0.0, run / "checkpoints" / "step-000000002.json", (signal.SIGTERM, signal.SIGINT))
    assert warm.run(*begin, moment=moment) == STOPPED
    assert "Traceback" not in warm.log.read_text()
    assert warm.run("resume", run, "--threads", 1) == 0
    assert_same_run(whole, run, steps=STEPS)
