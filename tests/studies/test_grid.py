"""A grid that is killed leaves no worker behind."""

import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOYS = Path(__file__).parents[1] / "grid_process_toys.py"
PATIENCE = 60


def within_patience(happened):
    until = time.monotonic() + PATIENCE
    while not (now := happened()) and time.monotonic() < until:
        time.sleep(0.05)
    return now


def is_free(path):
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_grid_that_is_killed(tmp_path, how):
    grid = subprocess.Popen([sys.executable, str(TOYS), str(tmp_path)])
    try:
        locks = [tmp_path / "a.lock", tmp_path / "b.lock"]
        assert within_patience(lambda: all(lock.with_suffix(".held").exists() for lock in locks))
        assert not any(is_free(lock) for lock in locks)
        grid.send_signal(how)
        assert within_patience(lambda: all(is_free(lock) for lock in locks))
    finally:
        grid.kill()
        grid.wait()
