"""An adapter that is fitted by several processes is the one that a single process fits."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from adapter_process_toys import KINDS, every_kind
from process_toys import together

from querykey.adapter.settings import AdapterSettings, resolve
from querykey.adapter.training import describe_fit_memory
from querykey.config.settings import changed
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.errors import ConfigError
from querykey.lookup import DensePairs, Lookup
from querykey.losses import circle, info_nce, multi_similarity, triplet


@pytest.fixture(scope="module")
def alone():
    return every_kind(SINGLE_PROCESS)


@pytest.mark.parametrize("count", [2, 3])
def test_many_processes_choose_and_fit_what_one_does(count, alone, tmp_path):
    found = together("adapter_process_toys:every_kind", count, tmp_path / "meeting")
    for name, wanted in alone.items():
        for one in found[1:]:
            assert torch.equal(one[name], found[0][name]), name
        relative, absolute = (1e-12, 1e-12) if "shares" in name else (1e-4 if "looks" in name else 0, 1e-6)
        torch.testing.assert_close(found[0][name], wanted, rtol=relative, atol=absolute, msg=name)
    assert sum("/codes" in name for name in alone) == 2 * 5
    assert all(float(alone[f"{kind}/looks"][:, 0].abs().sum()) > 0 for kind in KINDS)


def test_a_loss_that_needs_all_keys_refuses_a_shard():
    share = Lookup(torch.eye(2), torch.eye(2), DensePairs(torch.eye(2) > 0, torch.eye(2) == 0))
    for loss in (partial(info_nce, temperature=0.1), triplet, multi_similarity, circle):
        assert loss(share).shape == (2,)
        with pytest.raises(ConfigError, match="sharded over 2 processes"):
            loss(replace(share, shard_group=ProcessGroup(0, 2)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"memory": "in_batch"}, "no rows to shard"),
        ({"loss_options": {"form": "chunked"}}, "the loss is dense"),
    ],
)
def test_what_a_sharded_memory_cannot_do_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        resolve(AdapterSettings.from_parameters(sharded=True, **given), task="unlabelled", items=90, width=8)


def test_the_memory_estimate_is_of_the_local_shard():
    settings = resolve(
        AdapterSettings.from_parameters(sharded=True), task="unlabelled", items=10**6, width=512
    )
    settings = changed(settings, {"memory.capacity": 10**6})
    words = describe_fit_memory(settings, items=10**6, width=512, processes=8)
    assert words == "memory: loss about 396 MiB (dense, 128 x 125,000 scores), features 244 MiB"
