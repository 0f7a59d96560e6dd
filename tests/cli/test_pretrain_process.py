"""Ctrl-C amid a pretraining, in a process of its own: the state is saved, and `resume` goes on with it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from pretraining_toys import put_stripes

COMMAND = [sys.executable, "-m", "querykey"]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


SLOW = """
import pathlib, time
from torch import nn

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)

    def forward(self, images):
        if self.training:
            pathlib.Path("begun").touch()
            time.sleep(0.05)
        return self.first(images).mean(dim=(2, 3))
"""


def begun(images, out, steps, backbone="small_cnn:4"):
    settings = (
        f"backbone={backbone}", "batch_size=16", f"steps={steps}", "precision=float32", "layout=contiguous",
        "held_out=4", "num_evals=0", "views.size=12",
    )  # fmt: skip
    arguments = ["pretrain", "--data", images, "--out", out, "--threads", "1"]
    arguments += [part for setting in settings for part in ("--set", setting)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, cwd=images.parent,
    )  # fmt: skip


def wait(running, until):
    deadline = time.monotonic() + 120
    while not until():
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop(running):
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    return out, err


def test_ctrl_c_after_a_step_saves_the_state_and_resume_ends_the_run(tmp_path):
    images, run = put_stripes(tmp_path / "images"), tmp_path / "run"
    running = begun(images, run, 2000)
    metrics = run / "metrics.jsonl"
    wait(running, lambda: metrics.exists() and '"step": 10,' in metrics.read_text())
    _, err = stop(running)
    assert "stopping after this step; once more stops at once" in err
    last = err.splitlines()[-1]
    assert last.startswith("note: stopped after step ")
    assert last.endswith(f"continue with: querykey resume {run}")
    step = int(last.split("after step ")[1].split(";")[0])
    assert f"step-{step:09d}.json" in {path.name for path in (run / "checkpoints").iterdir()}
    assert not (run / "encoder.json").exists()
    # not all of the two thousand: an epoch of these images is one step
    more = [*COMMAND, "resume", str(run), "--epochs", str(step + 2)]
    done = subprocess.run(more, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{step + 2:,} steps" in done.stdout
    assert (run / "encoder.json").exists()


def test_ctrl_c_before_the_first_step_leaves_nothing(tmp_path):
    """While steps are measured nothing stands at the output yet."""
    images, run = put_stripes(tmp_path / "images"), tmp_path / "run"
    (tmp_path / "slow.py").write_text(SLOW)
    running = begun(images, run, 2000, backbone="slow:Slow")
    wait(running, (tmp_path / "begun").exists)
    out, err = stop(running)
    assert err.splitlines()[-1] == "stopped by Ctrl-C"
    assert out == ""
    assert not run.exists()
