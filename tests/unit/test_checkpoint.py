"""Checkpoints are whole or not there, and the newest whole one is taken."""

import json

import pytest
import torch

from querykey.errors import MissingPathError, StoreError
from querykey.training.checkpoint import (
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


def test_the_last_two_are_kept_by_number_and_not_by_name_or_time(tmp_path):
    put(tmp_path, 9, 1000, 10)
    assert names(tmp_path) == [f"step-{s:09d}.{e}" for s in (10, 1000) for e in ("json", "safetensors")]
    assert latest_checkpoint(tmp_path).step == 1000


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
    with pytest.raises(StoreError, match=r"no checkpoint is whole: step-000000002 .*step-000000001 .*again"):
        latest_checkpoint(tmp_path)


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
