"""What goes wrong around a pretraining: disks, clocks, memory, images, workers. Nothing is lost."""

import errno
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from pretraining_toys import DIGITS, TINY, after, metrics, put_stripes

from querykey import pretrain, resume
from querykey.errors import OutOfMemoryError, OutputError, OutputExistsError, is_out_of_memory
from querykey.pretraining import autotune
from querykey.pretraining.checkpoint import latest_checkpoint
from querykey.pretraining.learner import Learner
from querykey.pretraining.resume import double_chunks
from querykey.pretraining.settings.settings import PretrainSettings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits and signals of POSIX")
SETTINGS = TINY | {"steps": 6, "num_evals": 2}
CPU_WORDS = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.fixture(scope="module", autouse=True)
def _measured_at_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "TRIALS", 1)
        patch.setattr(autotune, "STEADY_TRIALS", 1)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run to which nothing happened."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return pretrain(DIGITS, out=folder, **SETTINGS)


def weights(run):
    return run.encoder.encoder.state_dict()


def assert_equal(one, other):
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())
    assert metrics(one.folder) == metrics(other.folder)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# the disk


def name_of(handle):
    return str(Path(f"/proc/self/fd/{handle}").readlink())


class FullDisk:
    """No space is left for any file of which a part of the name is this."""

    def __init__(self, monkeypatch, part):
        self.is_full, sync = True, os.fsync

        def refused(handle):
            if self.is_full and part in name_of(handle):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(handle)

        monkeypatch.setattr(os, "fsync", refused)


@pytest.mark.parametrize("part", ["step-000000004.safetensors", "step-000000004.json"])
def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(part, tmp_path, monkeypatch, whole, querykey):
    disk, run = FullDisk(monkeypatch, part), tmp_path / "run"
    options = [f"--set={name}={value}" for name, value in (
        ("backbone", "small_cnn:4"), ("batch_size", 32), ("head.dim", 16), ("precision", "float32"),
        ("layout", "contiguous"), ("held_out", 40), ("num_evals", 2), ("views.preset", "digits"),
        ("views.size", 8), ("steps", 6),
    )]  # fmt: skip
    said = querykey("pretrain", "--data", DIGITS, "--out", run, "--save-every", 0, "--threads", 1, *options)
    assert said.code == 2
    file = run / "checkpoints" / part
    assert said.err == (
        f"error: {file} cannot be written: the disk is full; free some space and run it again: what was "
        f"finished is kept; the state after step 3 is kept in {run}\n"
    )
    kept = latest_checkpoint(run / "checkpoints")
    assert (kept.step, kept.skipped) == (3, ())
    assert not [name for name in names(run / "checkpoints") if name.startswith(".")]
    disk.is_full = False
    assert_equal(resume(run), whole)


def test_a_file_that_is_cut_short_by_the_system_is_no_checkpoint(tmp_path, whole):
    """A limit of the system, so that half of the file is written before it says so."""
    run, former = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(shown):
        if shown.step == 3:
            size = (run / "checkpoints" / "step-000000002.safetensors").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, former[1]))

    try:
        with pytest.raises(
            OutputError, match=r"step-000000003\.safetensors cannot be written: File too large"
        ):
            pretrain(DIGITS, out=run, save_every=0.0, on_step_end=limit, **SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert latest_checkpoint(run / "checkpoints").step == 2
    assert_equal(resume(run), whole)


def test_a_second_interrupt_amid_a_checkpoint_leaves_no_half_of_it(tmp_path, monkeypatch, whole):
    run, sync = tmp_path / "run", os.fsync

    def interrupted(handle):
        if "step-000000003.safetensors" in name_of(handle):
            raise KeyboardInterrupt
        sync(handle)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(DIGITS, out=run, save_every=0.0, **SETTINGS)
    assert names(run / "checkpoints") == [
        "lock", *(f"step-{step:09d}.{ending}" for step in (1, 2) for ending in ("json", "safetensors"))
    ]  # fmt: skip
    monkeypatch.undo()
    assert_equal(resume(run), whole)


def test_an_output_that_cannot_be_is_refused_before_anything_long(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    begun = []
    with pytest.raises(OutputError, match=rf"{tmp_path / 'file'} is not a folder; give another path"):
        pretrain(DIGITS, out=tmp_path / "file" / "deep" / "run", on_fit_start=begun.append, **SETTINGS)
    monkeypatch.setattr(os, "access", lambda *_: False)  # as of a folder, or a disk, that is read-only
    with pytest.raises(OutputError, match=rf"no permission to write in {tmp_path}; give another path"):
        pretrain(DIGITS, out=tmp_path / "run", on_fit_start=begun.append, **SETTINGS)
    assert begun == []
    assert names(tmp_path) == ["file"]


def test_a_disk_that_becomes_read_only_is_one_message(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(OutputError, match=r"run: the disk is read-only; give another path"):
        pretrain(
            DIGITS,
            out=tmp_path / "run",
            **SETTINGS,
            on_fit_start=lambda _: monkeypatch.setattr(os, "mkdir", refused),
        )
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_files_that_appear_at_the_output_are_not_overwritten(tmp_path):
    def occupy(_):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "mine").touch()

    with pytest.raises(OutputExistsError):
        pretrain(DIGITS, out=tmp_path / "run", on_fit_start=occupy, **SETTINGS)
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["mine"]


# the clock


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch, whole):
    draw, saved = random.Random(0), []
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: draw.uniform(0, 2e9))  # beyond, queues of other threads fail
        run = pretrain(
            DIGITS, out=tmp_path / "run", save_every=3600.0, **SETTINGS,
            on_step_end=lambda _: saved.append(latest_checkpoint(tmp_path / "run" / "checkpoints").step),
        )  # fmt: skip
    assert set(saved) == {0}  # an hour has not passed
    assert_equal(run, whole)
    assert 0 < run.report["seconds"] < 600


# memory

SHORT = SETTINGS | {"steps": 4, "batch_size": 16, "batch_norm": "layer"}
"""Parts of a batch are joined at each batch norm, which takes its time; one test has them."""


@pytest.mark.parametrize(
    ("error", "is_short"),
    [
        (MemoryError(), True), (RuntimeError(CPU_WORDS), True), (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), True), (RuntimeError("shapes differ"), False),
        (ValueError("not enough memory"), False),
    ],
)  # fmt: skip
def test_out_of_memory_is_recognised(error, is_short):
    assert is_out_of_memory(error) == is_short


def _short_of_memory(monkeypatch, at, *, chunks=1):
    """From one on no step fits the memory in so many parts; that is noticed after it was half taken."""
    training_step, taken = Learner.training_step, itertools.count()

    def refused(self, *given, **options):
        result = training_step(self, *given, **options)
        if self.settings.chunks <= chunks and next(taken) >= at:
            raise RuntimeError(CPU_WORDS)
        return result

    monkeypatch.setattr(Learner, "training_step", refused)


@pytest.mark.parametrize("method", ["simclr", "moco-v3", "xbm"])
def test_a_step_that_does_not_fit_the_memory_is_computed_in_chunks(method, tmp_path, monkeypatch):
    norm = {"batch_norm": "device"} if method == "simclr" else {}
    settings, said = SHORT | {"method": method} | norm, []
    plain = pretrain(DIGITS, **settings)
    with monkeypatch.context() as patch:
        run = pretrain(
            DIGITS, out=tmp_path / "run", save_every=0.0, notify=said.append, **settings,
            on_fit_start=lambda _: _short_of_memory(patch, 2),
        )  # fmt: skip
    told = [words for words in said if "memory" in words]
    assert len(told) == 1
    assert told[0].startswith(
        "step 2 needs more memory than there is: restarted from the checkpoint after step 2; steps are "
    )
    assert told[0].endswith("computed in 2 chunks, with the gradient of the full batch")
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(run)[name], value, rtol=1e-3, atol=2e-5, msg=name)
    assert [r["step"] for r in metrics(tmp_path / "run") if r["kind"] == "step"] == [1, 2, 3, 4]
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["settings"]["chunks"] == 2
    assert described["changes"] == [{"step": 2, "settings.chunks": 2}]
    # to the bit it is a run of two parts from there on, however it was stopped in between
    with monkeypatch.context() as patch:
        begin = {"on_fit_start": lambda _: _short_of_memory(patch, 2), "save_every": 0.0}
        pretrain(DIGITS, out=tmp_path / "parted", stop=after(3), **begin, **settings)
    assert_equal(resume(tmp_path / "parted"), run)


def test_a_run_that_lacks_memory_goes_back_to_what_was_kept(tmp_path, monkeypatch):
    said = []
    with monkeypatch.context() as patch:
        run = pretrain(
            DIGITS, out=tmp_path / "run", notify=said.append, **SHORT,
            on_fit_start=lambda _: _short_of_memory(patch, 2, chunks=2),
        )  # fmt: skip
    assert [words.split(":")[0] for words in said] == [
        "step 2 needs more memory than there is", "step 0 needs more memory than there is",
    ]  # fmt: skip
    assert run.settings.chunks == 4
    assert_equal(run, pretrain(DIGITS, out=tmp_path / "four", chunks=4, **SHORT))


def test_a_lack_of_memory_in_the_trial_is_met_before_the_first_step(tmp_path, monkeypatch):
    said = []
    with monkeypatch.context() as patch:
        _short_of_memory(patch, 0)
        run = pretrain(DIGITS, out=tmp_path / "run", notify=said.append, **SHORT)
    assert said == ["a batch does not fit in memory: steps are computed in 2 chunks"]
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (described["settings"]["chunks"], described["changes"]) == (2, [])
    assert_equal(run, pretrain(DIGITS, out=tmp_path / "two", chunks=2, **SHORT))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"method": "moco", "batch_norm": "split"},
            "lower batch_size or capacity: with split batch norm a step cannot be computed in chunks",
        ),
        ({"method": "end-to-end"}, "with end-to-end keys a step cannot be computed in chunks"),
        (
            {"chunks": 8, "batch_size": 8},
            "though a batch of 8 is computed in 8 chunks; use a smaller network or dictionary",
        ),
    ],
)
def test_what_cannot_be_cut_any_further_is_one_message(given, said, tmp_path, monkeypatch, querykey):
    with pytest.raises(
        OutOfMemoryError, match=r"step 2 needs more memory.*; the state after step 0 is kept"
    ) as caught:
        pretrain(
            DIGITS, out=tmp_path / "run", **SHORT | given,
            on_fit_start=lambda _: _short_of_memory(monkeypatch, 2, chunks=99),
        )  # fmt: skip
    assert said in str(caught.value)


def test_without_a_folder_out_of_memory_is_an_error(monkeypatch):
    with pytest.raises(OutOfMemoryError, match="raise chunks, or lower batch_size"):
        pretrain(DIGITS, **SETTINGS, on_fit_start=lambda _: _short_of_memory(monkeypatch, 1))


def test_chunks_replace_checkpointing_with_batch_norm():
    settings = PretrainSettings(checkpointing=True, batch_size=8)
    assert not double_chunks(settings, reason="").checkpointing
    layer = PretrainSettings.make({"checkpointing": True, "batch_size": 8, "batch_norm": "layer"})
    assert double_chunks(layer, reason="").checkpointing


# images and those who decode them

HERE = TINY | {"batch_size": 8, "views.size": 12, "image_size": 16, "held_out": 2, "num_evals": 1, "steps": 4}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_restarted_and_no_bit_differs(workers, tmp_path):
    images, said, killed = put_stripes(tmp_path / "images"), [], []
    plain = pretrain(images, out=tmp_path / "plain", memory_limit=0, workers=0, **HERE)

    def kill(shown):
        if shown.step == 1:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
                killed.append(child.pid)

    run = pretrain(
        images,
        out=tmp_path / "run",
        memory_limit=0,
        workers=workers,
        notify=said.append,
        on_step_end=kill,
        **HERE,
    )
    assert killed
    told = [words for words in said if "died" in words]
    assert told
    assert all("it is restarted" in words for words in told)
    assert_equal(run, plain)


def test_images_lost_for_good_end_the_run_and_nothing_that_was_kept_is_lost(tmp_path, querykey):
    images, run = put_stripes(tmp_path / "images"), tmp_path / "run"
    plain = pretrain(images, out=tmp_path / "plain", memory_limit=0, workers=0, **HERE)
    kept = tmp_path / "kept"
    shutil.copytree(images, kept)

    def lose(shown):
        if shown.step == 2:
            shutil.rmtree(images / "down")

    from querykey.errors import ConfigError, DataError

    with pytest.raises(
        DataError, match=r"more than a tenth of the 24 images .*; the state after step 2 is kept"
    ):
        pretrain(images, out=run, memory_limit=0, workers=0, save_every=0.0, on_step_end=lose, **HERE)
    with pytest.raises(ConfigError, match="is not what the run was trained on: its fingerprint has changed"):
        resume(run, memory_limit=0, workers=0)
    shutil.rmtree(images)
    shutil.copytree(kept, images)
    assert_equal(resume(run, memory_limit=0, workers=0), plain)
