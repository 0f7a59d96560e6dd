"""How many modules a step and a run enter, and how far it is from the command to the loss."""

import subprocess
import sys

import pytest
from architecture.source import ROOT

MODULES_OF_A_STEP, MODULES_OF_A_RUN, FRAMES = 14, 55, 9


@pytest.fixture(scope="module")
def printed():
    """A fresh interpreter: what is imported late, and what others have patched, must not count."""
    command = [sys.executable, str(ROOT / "scripts" / "call_path.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def number(printed, start):
    (line,) = (line for line in printed.splitlines() if line.startswith(start))
    return int(line.rpartition(": ")[2])


def test_a_step_of_moco_enters_few_modules(printed):
    assert 0 < number(printed, "modules that one step") <= MODULES_OF_A_STEP


def test_a_run_enters_few_modules(printed):
    assert 0 < number(printed, "modules that a small run") <= MODULES_OF_A_RUN


def test_the_loss_is_near_the_command(printed):
    assert 0 < number(printed, "frames from the command") <= FRAMES


def test_no_two_modules_call_each_other_in_a_step(printed):
    assert [line.strip() for line in printed.splitlines() if "<->" in line] == []
