"""Steps that do not fit under a memory limit of the system are computed in chunks, with the same gradient."""

import json
import subprocess
import sys

import pytest
from killing import ENVIRONMENT
from pretraining_toys import metrics, put_stripes
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS needs Linux")
MEGABYTES = 2**20
RUN = """
import faulthandler, json, resource, sys
from pathlib import Path
import torch
from querykey import pretrain
from querykey.pretraining import autotune

faulthandler.enable()
torch.set_num_threads(1)
autotune.TRIALS = autotune.STEADY_TRIALS = 1
images, out, spare, moment, chunks = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])

def limit(_=None):
    if spare:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + spare, resource.getrlimit(resource.RLIMIT_AS)[1]))

torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)  # the first optimiser imports a compiler
if moment == "trial":
    seconds = autotune._shortest_in_turns
    autotune._shortest_in_turns = lambda *given: (autotune.__dict__.pop("limit", int)(), seconds(*given))[1]
    autotune.limit = limit  # once
pretrain(
    images, out=out, method="simclr", backbone="small_cnn:32", batch_size=256, image_size=64, steps=2,
    views={"preset": "grayscale", "size": 64}, num_evals=0, held_out=0, precision="float32",
    layout="contiguous", chunks=chunks,
    on_fit_start=limit if moment == "step" else None, notify=lambda words: print(words, flush=True),
)
"""
"""A whole step takes some 350 MB."""
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""glibc keeps freed blocks of up to 32 MB, and how much of them is used again differs from run to run."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return put_stripes(tmp_path_factory.mktemp("images") / "all", count=130, side=64)


def ran(images, out, *, spare=0, moment="none", chunks=1):
    return subprocess.run(
        [sys.executable, "-c", RUN, *map(str, (images, out, spare * MEGABYTES, moment, chunks))],
        capture_output=True, text=True, check=False, env=ENVIRONMENT | RETURNS_MEMORY,
    )  # fmt: skip


def settings_of(run):
    return json.loads((run / "run.json").read_text())["settings"]


@pytest.mark.parametrize(("moment", "spare"), [("trial", 260), ("step", 230)])
def test_a_step_under_a_memory_limit_is_computed_in_chunks(moment, spare, images, tmp_path):
    whole, limited, chunked = tmp_path / "whole", tmp_path / "limited", tmp_path / "chunked"
    assert ran(images, whole).returncode == 0
    done = ran(images, limited, spare=spare, moment=moment)
    assert done.returncode == 0, done.stderr
    print(f"\n{done.stdout}")
    chunks = settings_of(limited)["chunks"]
    assert chunks > 1
    assert f"{chunks} chunks" in done.stdout
    # the state before the first step alone was saved, so all steps were computed in as many chunks
    assert ran(images, chunked, chunks=chunks).returncode == 0
    assert (chunked / "encoder.safetensors").read_bytes() == (limited / "encoder.safetensors").read_bytes()
    taken = [[record for record in metrics(run) if record["step"]] for run in (chunked, limited)]
    assert taken[0] == taken[1]  # the evaluation before the first step had other chunks
    # and the weights are near those of whole batches
    start, end, other = (
        load_file(file)
        for file in (
            whole / "untrained.safetensors",
            whole / "encoder.safetensors",
            limited / "encoder.safetensors",
        )
    )
    for name, value in end.items():
        way = (value.double() - start[name].double()).norm()
        assert (other[name].double() - value.double()).norm() <= 0.01 * way + 1e-6, name


def test_a_limit_that_no_chunk_fits_is_one_message(images, tmp_path):
    done = ran(images, tmp_path / "run", spare=4, moment="trial")
    assert done.returncode != 0
    assert "OutOfMemoryError" in done.stderr or "MemoryError" in done.stderr


COPIES = """
import re
from pathlib import Path
import torch
from querykey.adapter.validation import BLOCK, copies_of

class Rows:
    shape, dtype, block = (120 * BLOCK, 384), torch.float32, torch.randn(BLOCK, 384)

    def __len__(self):
        return len(self.block) * 120

    def __getitem__(self, at):
        return self.block.roll(at.start // BLOCK, 0) if isinstance(at, slice) else self.block[at % BLOCK]

def megabytes():
    return int(re.search("RssAnon:\\\\s+(\\\\d+)", Path("/proc/self/status").read_text())[1]) / 1000

torch.manual_seed(0)
rows, before = Rows(), megabytes()
found = copies_of(rows, torch.randperm(len(rows))[:2000])
print(sum(map(len, found)), megabytes() - before)
"""


def test_finding_copies_does_not_keep_the_memory_of_each_block():
    """With glibc's own settings: small arrays between large ones are what it cannot give back."""
    done = subprocess.run([sys.executable, "-c", COPIES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, megabytes = done.stdout.split()
    assert int(count) >= 2000
    assert float(megabytes) < 300
