"""Runs killed at many random moments, and gone on with: every bit is that of a run that never stopped.

`make soak` runs this; `make check` has a few of the same moments in tests/cli/test_killed.py.
"""

import json
import os
import random
import signal
import sys

import numpy as np
import pytest
from killing import Cold, Moment, Warm, assert_same_run, kill_until_it_ends, leftovers, timed
from pretraining_toys import METHODS, put_stripes, small_run

from querykey.io.records import read

MOMENTS = int(os.environ.get("SOAK_MOMENTS", "20"))
STEPS = 30
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    runner = Warm(tmp_path_factory.mktemp("warm"))
    put_stripes(runner.folder / "images", count=32)
    yield runner
    runner.close()


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_with_every_bit_of_one_that_was_not(method, warm, record_property):
    """Moments are spread over the life of a process: before step 0, in steps, in checkpoints, at the end."""
    folder, draw = warm.folder / method, random.Random(f"soak {method}")
    folder.mkdir()
    whole = folder / "whole"
    life = timed(warm, *small_run("images", whole, method, steps=STEPS))
    moments = []
    while len(moments) < MOMENTS:
        run = folder / f"killed-{len(moments)}"
        most = min(6, MOMENTS - len(moments))
        begin = small_run("images", run, method, steps=STEPS)
        found = kill_until_it_ends(warm, begin, run, draw=draw, life=life, kills=most, steps=STEPS)
        assert_same_run(whole, run, steps=STEPS)
        moments += found
    record_property("moments", moments)
    print(f"\n{method}: {len(moments)} kills, newest checkpoint then: {sorted(moments)} of {STEPS}")


@pytest.mark.parametrize("method", ["moco", "xbm"])
def test_a_run_that_dies_at_any_call_that_writes_ends_with_every_bit(method, warm):
    """Not at random: in front of each call, one after the other, that makes, writes or names a file."""
    folder, steps = warm.folder / f"{method}-calls", 3
    folder.mkdir()
    whole = folder / "whole"
    timed(warm, *small_run("images", whole, method, steps=steps))
    call, died = 0, 0
    while True:
        run = folder / f"call-{call}"
        code = warm.run(*small_run("images", run, method, steps=steps), die_at=call)
        if code == 0:
            break
        assert code == -signal.SIGKILL, warm.log.read_text()
        died += 1
        if (run / "run.json").exists():
            code = warm.run("resume", run, "--threads", 1)
            assert code == 0 or "the run is finished" in warm.log.read_text().splitlines()[-1]
        else:
            assert not run.exists()  # what cannot be gone on with is not there
            assert warm.run(*small_run("images", run, method, steps=steps)) == 0
        assert_same_run(whole, run, steps=steps)
        call += 1 if died < 30 else 3
    print(f"\n{method}: died at {died} of {call} calls")
    assert died > 30


def test_the_true_command_is_killed_from_the_start_of_python_on(tmp_path):
    put_stripes(tmp_path / "images", count=32)
    cold, draw = Cold(tmp_path), random.Random("cold")
    whole, run = tmp_path / "whole", tmp_path / "run"
    life = timed(cold, *small_run("images", whole, "moco-v3", steps=STEPS))
    found = kill_until_it_ends(
        cold,
        small_run("images", run, "moco-v3", steps=STEPS),
        run,
        draw=draw,
        life=life,
        kills=6,
        steps=STEPS,
    )
    assert_same_run(whole, run, steps=STEPS)
    assert found


def test_measured_choices_are_read_back(warm):
    """Precision and layout that a run chose by itself, and never again: as if they had been asked for."""
    folder, draw = warm.folder / "measured", random.Random("measured")
    folder.mkdir()
    run = folder / "run"
    begin = small_run("images", run, "simclr", steps=STEPS, precision="auto", layout="auto")
    life = 2 * timed(warm, *small_run("images", folder / "first", "simclr", steps=STEPS))
    kill_until_it_ends(warm, begin, run, draw=draw, life=life, kills=8, steps=STEPS)
    chosen = json.loads((run / "run.json").read_text())["settings"]
    again = {name: chosen[name] for name in ("precision", "layout")}
    whole = folder / "whole"
    timed(warm, *small_run("images", whole, "simclr", steps=STEPS, **again))
    for name in ("encoder.safetensors", f"checkpoints/step-{STEPS:09d}.safetensors"):
        assert (whole / name).read_bytes() == (run / name).read_bytes()


def test_a_killed_adapter_leaves_nothing_and_the_same_command_gives_the_same_bits(warm):
    """A fit is short and has no checkpoints: it is there whole, or is not there."""
    folder, draw = warm.folder / "adapters", random.Random("adapt")
    folder.mkdir()
    rows = np.random.default_rng(0)
    y = rows.integers(0, 6, 400)
    X = rows.normal(size=(6, 12))[y] + rows.normal(size=(400, 12))
    np.savez(folder / "train.npz", X=X.astype(np.float32), y=y)

    def adapt(out):
        return ("adapt", folder / "train.npz", "--out", out, "--labels", "y", "--dims", "8,4", "--bits", "8",
                "--set", "steps=20", "--threads", 1)  # fmt: skip

    whole = folder / "whole"
    life, kills, number = timed(warm, *adapt(whole)), 0, 0
    while kills < MOMENTS:
        out = folder / f"run-{number}"
        code = warm.run(*adapt(out), moment=Moment(draw.uniform(0, life)))
        if code != 0:
            assert code == -signal.SIGKILL, warm.log.read_text()
            kills += 1
            assert not out.exists() or (out / "run.json").exists()
        if not out.exists():
            assert warm.run(*adapt(out)) == 0, warm.log.read_text()
        for name in ("adapter.safetensors", "codes.safetensors"):
            assert (out / name).read_bytes() == (whole / name).read_bytes()
        assert leftovers(out) == []
        steps = [[r for r in read(at / "metrics.jsonl") if r["kind"] == "step"] for at in (out, whole)]
        plain = [[{k: v for k, v in r.items() if "seconds" not in k} for r in side] for side in steps]
        assert plain[0] == plain[1]
        number += 1
