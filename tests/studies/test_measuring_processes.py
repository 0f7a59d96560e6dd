"""Several processes embed and evaluate as one does, and write once."""

import pytest
import torch
from measuring_process_toys import embedded_and_evaluated
from pretraining_toys import TINY, put_stripes
from process_toys import together

from querykey import pretrain
from querykey.distributed.process_group import SINGLE_PROCESS
from querykey.pretraining import autotune

HERE = TINY | {"batch_size": 16, "views.size": 12, "held_out": 4, "num_evals": 1, "steps": 3}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for part, seed, count in (("train", 0, 16), ("test", 1, 10)):
        put_stripes(folder / part, seed=seed, count=count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "TRIALS", 1)
        patch.setattr(autotune, "STEADY_TRIALS", 1)
        torch.set_num_threads(1)
        pretrain(folder / "train", out=folder / "run", **HERE)
    return folder


def test_three_processes_write_and_say_what_one_does(images, tmp_path):
    alone = embedded_and_evaluated(SINGLE_PROCESS, str(make(tmp_path / "alone")), str(images))
    found = together(
        "measuring_process_toys:embedded_and_evaluated", 3, make(tmp_path / "meeting"),
        str(make(tmp_path / "together")), str(images),
    )  # fmt: skip
    assert [int(one["rank"]) for one in found] == [0, 1, 2]
    counts = [int(one["encoded"]) for one in found]
    assert sum(counts) == int(alone["encoded"])  # each item by one process
    assert max(counts) < sum(counts) / 2
    for one in found:
        for name in ("vectors", "files", "table"):
            assert torch.equal(one[name], alone[name]), name
        assert not one["left"].any()


def make(folder):
    folder.mkdir()
    return folder
