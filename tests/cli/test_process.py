"""The command in a process of its own: exit codes, Ctrl-C, and how fast help comes."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

COMMAND = [sys.executable, "-m", "querykey"]


def run(*arguments):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_a_mistake_exits_with_2_and_one_message(tmp_path):
    done = run("adapt", tmp_path / "none", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: there is nothing at {tmp_path / 'none'}")
    assert len(done.stderr.splitlines()) == 1


def test_doctor_without_data_imports_no_readers():
    code = (
        "import sys; from querykey.cli.main import main; sys.argv = ['querykey', 'doctor']\n"
        "try: main()\n"
        "finally: print('querykey.runs.data' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_the_installed_command_is_the_same():
    script = subprocess.run(
        ["querykey", "--help"], capture_output=True, text=True, check=False, env=on_path()
    )
    assert script.returncode == 0
    assert script.stdout == run("--help").stdout
    assert "Commands:" in script.stdout


def on_path():
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_during_training_keeps_the_best_so_far_and_says_so(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "X.npy", rng.normal(size=(4000, 64)).astype(np.float32))
    running = subprocess.Popen(
        [*COMMAND, "adapt", str(tmp_path / "X.npy"), "--out", str(tmp_path / "run"), "--dim", "16",
         "--set", "steps=1000000", "--set", "n_iter_no_change=1000000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while "memory:" not in (line := running.stderr.readline()):
        assert line or running.poll() is None
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    try:
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 0, err
    assert "stopped by Ctrl-C" in " ".join(out.split())
    assert "Traceback" not in err
    assert (tmp_path / "run" / "adapter.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["X.npy", "run"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_while_an_import_runs_exits_with_130_too(tmp_path):
    """CPython kills `python -m` by SIGINT for an interrupt that came through exec(), handled or not."""
    (tmp_path / "interrupted.py").write_text(
        "import querykey.cli.main as command\n"
        "command.app = lambda **_: exec('raise KeyboardInterrupt')\n"
        "command.main()\n"
    )
    done = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, check=False)
    assert done.returncode == 130


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_that_is_swallowed_comes_again(tmp_path):
    """A bare except around an import, as some packages have, must not make a run deaf."""
    (tmp_path / "deaf.py").write_text(
        "import os, signal, time\n"
        "import querykey.cli.main as command\n"
        "def app(**_):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except BaseException:\n"
        "        pass\n"
        "    time.sleep(60)\n"
        "command.app = app\n"
        "command.main()\n"
    )
    done = subprocess.run([sys.executable, "-m", "deaf"], cwd=tmp_path, check=False, timeout=50)
    assert done.returncode == 130


def test_help_comes_at_once():
    """At most ten times what Python takes to do nothing; in processor time, as the machine is shared."""

    def best(command):
        costs = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(costs)

    assert best([*COMMAND, "--help"]) <= 10 * best([sys.executable, "-c", "pass"])
