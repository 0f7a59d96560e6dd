"""Commands under torchrun: what many processes write is what one writes, and what goes wrong is told once."""

import json
import os
import subprocess
import sys

import pytest
import torch
from pretraining_toys import metrics, put_stripes, small_run
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo of POSIX")
COUNT = 2
RUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={COUNT}"]
STEPS = 4
GLOBAL = {"batch_norm.kind": "global"}


def run(*arguments, many=True, code=0):
    command = [*(RUN if many else [sys.executable]), "-m", "querykey", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )  # fmt: skip
    # torchrun has an exit code of its own, 1, whatever that of its processes was
    assert done.returncode == (min(code, 1) if many else code), done.stderr
    return done


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return put_stripes(tmp_path_factory.mktemp("many") / "images", count=22)


@pytest.fixture(scope="module")
def begun(images):
    """A run by two processes, stopped half-way as a user would: with fewer epochs."""
    out = images.parent / "run"
    done = run(*small_run(images, out, "simclr", steps=STEPS, **GLOBAL))
    return out, done


def weights(folder):
    return load_file(folder / "encoder.safetensors")


def test_one_process_prints_and_writes(begun, images):
    out, done = begun
    assert done.stdout.count(f"{out}: {STEPS} steps") == 1
    assert done.stdout.count("simclr:") == 1
    steps = [record["step"] for record in metrics(out) if record["kind"] == "step"]
    assert steps == list(range(1, STEPS + 1))
    assert json.loads((out / "run.json").read_text())["processes"] == COUNT
    assert not list(images.parent.glob("*.partial*"))


def test_the_encoder_is_that_of_one_process(begun, images):
    alone = images.parent / "alone"
    run(*small_run(images, alone, "simclr", steps=STEPS, **GLOBAL), many=False)
    out, _ = begun
    found, wanted = weights(out), weights(alone)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)
    losses = [[r["loss"] for r in metrics(folder) if r["kind"] == "step"] for folder in (out, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_it_is_resumed_by_as_many_processes_and_by_one(begun, tmp_path):
    out, _ = begun
    longer = run("resume", out, "--epochs", 3 * STEPS)
    assert "become" in longer.stderr
    assert longer.stderr.count("note:") == longer.stderr.count("epochs become")
    one = run("resume", out, "--epochs", 4 * STEPS, many=False)
    assert f"processes were {COUNT} and are 1" in one.stderr
    steps = [record["step"] for record in metrics(out) if record["kind"] == "step"]
    assert steps == sorted(set(steps))


def test_a_mistake_is_reported_once(images):
    done = run(*small_run(images / "nowhere", images.parent / "none", "simclr", steps=2), code=2)
    assert done.stderr.count("error:") == 1
    assert not (images.parent / "none").exists()


def test_commands_for_one_process_say_so(begun):
    done = run("export", begun[0], "--to", "safetensors", "--out", begun[0].parent / "exported", code=2)
    assert done.stderr.count("call it without torchrun") == 1
