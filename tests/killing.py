"""Commands that are killed at any moment, and started again until they end by themselves."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pretraining_toys import metrics

from querykey.pretraining.checkpoint import latest_checkpoint

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PAUSE = 0.001
COMMAND = [sys.executable, "-m", "querykey"]
SERVER = '''
import json, os, sys
import torch
torch.set_num_threads(1)
import querykey.cli.main, querykey.cli.adapt, querykey.cli.pretrain, rich.console
import querykey.runs.adapt, querykey.runs.adapter_settings, querykey.runs.pretrain_settings
import querykey.runs.pretrain, querykey.data.readers.images
import querykey.data.readers.mapped, querykey.data.readers.tables, PIL.Image, PIL.PngImagePlugin
try:
    import torch.utils.tensorboard
except ImportError:
    pass
torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)  # the first optimiser imports a compiler

def die_at(call):
    """End this process in front of its `call`-th writing system call."""
    left = iter(range(call))
    for name in ("mkdir", "write", "fsync", "replace", "rename", "unlink", "rmdir"):
        def counted(*given, do=getattr(os, name), **options):
            if next(left, None) is None:
                os.kill(os.getpid(), 9)
            return do(*given, **options)
        setattr(os, name, counted)

def run(asked):
    os.setsid()
    os.chdir(asked["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    sys.argv = ["querykey", *asked["arguments"]]
    code = 0
    if asked["die_at"] is not None:
        die_at(asked["die_at"])
    try:
        querykey.cli.main.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)

print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        run(json.loads(line))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
'''
"""A process that has imported everything, and forks one that runs a command: a start takes no time."""


@dataclass
class Moment:
    """When a process is killed: after some time, or some time after a file is there.

    Args:
        seconds: The time.
        file: The file; None: from the start.
        signals: What it is sent, one after the other.
    """

    seconds: float
    file: Path | None = None
    signals: tuple = (signal.SIGKILL,)
    seen: float = 0.0

    def has_come(self, now):
        if self.file is not None and not self.seen:
            self.seen = now if self.file.exists() else 0.0
            return False
        return now - self.seen >= self.seconds


class Warm:
    """Runs commands one after the other, each in a process of its own.

    Args:
        folder: Where they run, and where `log` holds what they said.
    """

    def __init__(self, folder):
        self.folder, self.log = folder, folder / "log"
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=ENVIRONMENT,
        )  # fmt: skip
        assert self._read() == "ready"

    def run(self, *arguments, moment=None, die_at=None):
        """The exit code; minus 9 where it was killed at a `Moment`, or at that system call."""
        asked = {
            "arguments": [str(part) for part in arguments],
            "cwd": str(self.folder),
            "log": str(self.log),
            "die_at": die_at,
        }
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        pid, begun = int(self._read()), time.monotonic()
        while moment is not None:
            if select.select([self._server.stdout], [], [], PAUSE)[0]:
                break
            if moment.has_come(time.monotonic() - begun):
                for number in moment.signals:
                    os.kill(pid, number)
                break
        return int(self._read())

    def close(self):
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._server.stdout.close()

    def _read(self):
        # unbuffered, so that select sees what is left
        line = b""
        while not line.endswith(b"\n"):
            one = os.read(self._server.stdout.fileno(), 1)
            assert one, "the server has ended"
            line += one
        return line.decode().strip()


class Cold:
    """The same with the true command, from the start of Python on."""

    def __init__(self, folder):
        self.folder, self.log = folder, folder / "log"

    def run(self, *arguments, moment=None):
        begun = time.monotonic()
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*COMMAND, *map(str, arguments)], stdout=log, stderr=log, env=ENVIRONMENT, cwd=self.folder
            )
            while moment is not None and process.poll() is None:
                time.sleep(PAUSE)
                if moment.has_come(time.monotonic() - begun):
                    process.kill()
                    break
            return process.wait()


def timed(runner, *arguments):
    """Seconds that a command takes if it is left alone."""
    before = time.monotonic()
    assert runner.run(*arguments) == 0, runner.log.read_text()
    return time.monotonic() - before


def kill_until_it_ends(runner, begin, run, *, draw, life, kills, steps):
    """Start a pretraining, kill it, go on with it, and so on; it is left alone after so many kills.

    Args:
        runner: A `Warm` or `Cold`.
        begin: Arguments of `querykey` that begin the run.
        run: Its folder.
        draw: A random.Random. Half of the moments are uniform in the life of a whole run, which is import,
            data and measuring as well; the others are in a step, or in the checkpoint after it.
        life: Seconds of a whole run.
        kills: At the most.
        steps: Of the run, with a checkpoint after each.

    Returns:
        How often it was killed, and the steps that the newest checkpoint had each time; -1: none.
    """
    found = []
    while True:
        begins = not (run / "run.json").exists()
        arguments = begin if begins else ("resume", run, "--threads", 1)
        moment = None
        if len(found) < kills and draw.random() < 0.5:
            moment = Moment(draw.uniform(0, life))
        elif len(found) < kills:
            file = f"step-{draw.randrange(max(0, 0, *found), steps + 1):09d}.json"
            moment = Moment(draw.uniform(0, 0.02), run / "checkpoints" / file)
        code = runner.run(*arguments, moment=moment)
        if code == 0:
            return found
        if code != -signal.SIGKILL:
            # killed between its last act and its end: all is there
            assert "the run is finished" in runner.log.read_text().splitlines()[-1], runner.log.read_text()
            return found
        there = [int(path.stem.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*.json")]
        found.append(max(there, default=-1))


def assert_same_run(one, other, *, steps):
    """Every bit of two runs that has to be the same, is."""
    kept = [latest_checkpoint(run / "checkpoints") for run in (one, other)]
    assert [found.step for found in kept] == [steps, steps]
    assert kept[0].skipped == kept[1].skipped == ()
    assert kept[0].about["start"] == kept[1].about["start"]
    for name in (f"checkpoints/step-{steps:09d}.safetensors", "encoder.safetensors", "untrained.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    said = [json.loads((run / "run.json").read_text()) for run in (one, other)]
    for part in ("settings", "asked", "views", "data", "threads", "device"):
        assert said[0][part] == said[1][part], part
    assert metrics(one) == metrics(other)
    taken = [record["step"] for record in metrics(one) if record["kind"] == "step"]
    assert taken == list(range(1, steps + 1))
    assert leftovers(one) == leftovers(other) == []


def leftovers(run):
    """What a killed process had begun to write in or beside a run, and nobody has removed."""
    inside = [path for path in Path(run).rglob(".*") if path.is_file()]
    beside = [path for glob in (f"{run.name}.*", f".{run.name}.*") for path in Path(run).parent.glob(glob)]
    return [*inside, *beside]
