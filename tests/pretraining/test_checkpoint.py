"""Checkpoints are whole or not there, and the newest whole one is taken."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch

from querykey.errors import MissingPathError, RangeError, StoreError
from querykey.pretraining.checkpoint import (
    Saving,
    latest_checkpoint,
    optimizer_tensors,
    restore_optimizer_,
    write_checkpoint,
)


def tensors(step):
    draw = torch.Generator().manual_seed(step)
    return {
        "model.a": torch.randn(3, 4, generator=draw), "model.b": torch.randn(2, 3, 4, 5, generator=draw).to(
            memory_format=torch.channels_last
        ), "model.count": torch.tensor(step), "model.half": torch.randn(2, generator=draw).bfloat16(),
    }  # fmt: skip


def put(folder, *steps):
    for step in steps:
        write_checkpoint(folder, step, tensors(step), {"start": {"knn": 0.5}, "seconds": 0.1 * step})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_bit_comes_back(tmp_path):
    put(tmp_path, 7)
    found = latest_checkpoint(tmp_path)
    assert (found.step, found.skipped) == (7, ())
    assert found.about == {"start": {"knn": 0.5}, "seconds": 0.1 * 7}
    assert found.tensors.keys() == tensors(7).keys()
    for name, value in tensors(7).items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)


def both(*steps):
    return [f"step-{step:09d}.{ending}" for step in steps for ending in ("json", "safetensors")]


def test_the_last_two_are_kept_by_number_and_not_by_name_or_time(tmp_path):
    put(tmp_path, 9, 10, 1000)
    assert names(tmp_path) == both(10, 1000)
    assert latest_checkpoint(tmp_path).step == 1000


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_as_many_are_kept_as_asked_for(tmp_path, keep):
    for step in range(8):
        write_checkpoint(tmp_path, step, tensors(step), {}, keep=keep)
    assert names(tmp_path) == both(*range(8 - keep, 8))


def test_a_run_that_has_gone_back_leaves_no_later_checkpoint_behind(tmp_path):
    """Else a damaged one would count as one of those that are kept."""
    put(tmp_path, 1, 2, 3)
    put(tmp_path, 2)
    assert names(tmp_path) == both(2)
    put(tmp_path, 4)
    assert names(tmp_path) == both(2, 4)


def test_tensors_that_were_never_described_go_with_the_next_checkpoint(tmp_path):
    put(tmp_path, 1)
    (tmp_path / "step-000000002.safetensors").write_bytes(b"half")
    (tmp_path / "mine.txt").touch()
    put(tmp_path, 3)
    assert names(tmp_path) == ["mine.txt", *both(1, 3)]


@pytest.mark.parametrize(("keep", "seconds"), [(0, 1.0), (1, -1.0), (1, float("nan")), (1, float("inf"))])
def test_how_often_is_checked(keep, seconds):
    with pytest.raises(RangeError, match="must be at least"):
        Saving(seconds=seconds, keep=keep)


def test_a_damaged_one_is_passed_over_and_named(tmp_path):
    put(tmp_path, 1, 2)
    file = tmp_path / "step-000000002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = latest_checkpoint(tmp_path)
    assert found.step == 1
    assert torch.equal(found.tensors["model.a"], tensors(1)["model.a"])
    (skipped,) = found.skipped
    assert skipped.startswith("step-000000002 (")
    assert "bytes were changed" in skipped


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"sha256": 1}', "\udcff"])
def test_a_description_that_is_none_is_passed_over(tmp_path, text):
    put(tmp_path, 1, 2)
    (tmp_path / "step-000000002.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert latest_checkpoint(tmp_path).step == 1


def test_a_description_without_its_tensors_does_not_count(tmp_path):
    put(tmp_path, 1, 2)
    (tmp_path / "step-000000002.safetensors").unlink()
    assert latest_checkpoint(tmp_path).step == 1
    # and tensors without their description were never finished
    (tmp_path / "step-000000003.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path).step == 1


def test_all_damaged_and_none_at_all(tmp_path):
    with pytest.raises(MissingPathError, match="no checkpoint here"):
        latest_checkpoint(tmp_path / "none")
    with pytest.raises(MissingPathError, match="no checkpoint here"):
        latest_checkpoint(tmp_path)
    put(tmp_path, 1, 2)
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(
        StoreError, match=r"no checkpoint is complete: step-000000002 .*step-000000001 .*again"
    ):
        latest_checkpoint(tmp_path)


def test_a_description_that_was_changed_is_passed_over(tmp_path):
    """It has a checksum of its own: what it says besides the tensors counts as well."""
    put(tmp_path, 1, 2)
    file = tmp_path / "step-000000002.json"
    file.write_text(file.read_text().replace('"knn": 0.5', '"knn": 0.6'))
    found = latest_checkpoint(tmp_path)
    assert found.step == 1
    assert "its description was changed" in found.skipped[0]


def test_a_checkpoint_of_the_first_version_is_read(tmp_path):
    put(tmp_path, 1)
    file = tmp_path / "step-000000001.json"
    said = json.loads(file.read_text())
    del said["description_sha256"]
    file.write_text(json.dumps(said | {"version": 1}))
    assert latest_checkpoint(tmp_path).step == 1
    file.write_text(json.dumps(said | {"version": 3}))
    with pytest.raises(StoreError, match="it is of version 3; this querykey reads up to 2"):
        latest_checkpoint(tmp_path)


def test_a_pickle_in_a_checkpoint_is_not_loaded(tmp_path):
    """A stranger's file, whose description has the right checksums."""
    put(tmp_path, 1)
    trap = tmp_path / "sprung"
    content = pickle.dumps(Trap(trap))
    file = tmp_path / "step-000000001.json"
    said = json.loads(file.read_text())
    said |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "version": 1}
    file.write_text(json.dumps(said))
    (tmp_path / "step-000000001.safetensors").write_bytes(content)
    with pytest.raises(StoreError, match=r"no checkpoint is complete: step-000000001 .SafetensorError"):
        latest_checkpoint(tmp_path)
    assert not trap.exists()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_description_of_an_older_one_under_a_newer_name_is_damaged(tmp_path):
    put(tmp_path, 1, 2)
    older = json.loads((tmp_path / "step-000000001.json").read_text())
    (tmp_path / "step-000000002.json").write_text(json.dumps(older))
    assert latest_checkpoint(tmp_path).step == 1


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimiser_goes_on_as_if_it_had_never_stopped(kind):
    def made():
        weight = torch.nn.Parameter(torch.ones(4))
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        return weight, kind([weight], lr=0.1, **options)

    def step(weight, optimizer, number):
        optimizer.zero_grad()
        (weight * torch.arange(4.0) * number).sum().backward()
        optimizer.step()

    weight, optimizer = made()
    for number in (1, 2, 3):
        step(weight, optimizer, number)
        if number == 2:
            kept = {name: value.clone() for name, value in optimizer_tensors(optimizer).items()}
            halfway = weight.detach().clone()
    again, other = made()
    with torch.no_grad():
        again.copy_(halfway)
    other.param_groups[0]["lr"] = 0.1
    restore_optimizer_(other, kept)
    step(again, other, 3)
    assert torch.equal(again, weight)
