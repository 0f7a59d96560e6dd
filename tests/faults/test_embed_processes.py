"""Two processes embed what one embeds, and go on where they were stopped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from querykey import read_features

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo of POSIX")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ROWS = 1200
"""Three shards of 512: the first and the third are those of the main process."""


def embedded(table, out, *, many, stop=False):
    command = [sys.executable, *(TORCHRUN if many else []), "-m", "querykey", "embed", str(table), "--out",
               str(out), "--model", "cli.models:stopping"]  # fmt: skip
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    env |= {"STOP_AT": "halt"} if stop else {}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)


def test_two_processes_that_were_stopped_end_with_the_features_of_one(tmp_path):
    table = tmp_path / "t.csv"
    words = ["halt" if row == ROWS - 1 else f"word {chr(97 + row % 26)} {row}" for row in range(ROWS)]
    table.write_text("\n".join(["text", *words]) + "\n")
    alone = embedded(table, tmp_path / "alone", many=False)
    assert alone.returncode == 0, alone.stderr
    out = tmp_path / "many"
    stopped = embedded(table, out, many=True, stop=True)
    assert stopped.returncode != 0
    assert not out.exists()
    assert (tmp_path / "many.querykey").is_dir()
    resumed = embedded(table, out, many=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "resum" in resumed.stderr
    assert torch.equal(read_features(out).vectors, read_features(tmp_path / "alone").vectors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "many", "t.csv"]
