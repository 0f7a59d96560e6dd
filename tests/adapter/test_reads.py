"""What a step of the adapter reads of its tensors: on an accelerator each read would wait for the device.

Fits are on the processor, where a read costs nothing; the numbers here are what a port would have to remove.
"""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from querykey.adapter.closed_forms import principal_components
from querykey.adapter.sampling import plan_of_items
from querykey.adapter.settings import AdapterSettings, resolve
from querykey.adapter.training import layer_at
from querykey.evaluation.moments import moments

WAITS = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "equal", "bincount"}
LOSS = {"_local_scalar_dense": 1}
CANDIDATES = {"_unique2": 1, "index": 4, "index_put_": 1}
"""Each item of a batch and its selected rows is a candidate once: their number depends on the numbers."""


class Reads(TorchDispatchMode):
    """Counts the operations whose result has to be known to go on, with indices that are masks."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        is_masked = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for given in args[1:]
            if isinstance(given, list | tuple)
            for index in given
        )
        if name in WAITS or is_masked:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("loss", "capacity", "is_labelled", "reads"),
    [
        ("info_nce", 100, True, LOSS | CANDIDATES),
        ("multi_similarity", 300, True, LOSS | CANDIDATES),
        ("score_distillation", 300, False, LOSS),
    ],
)
def test_a_step_reads_its_loss_and_the_number_of_its_candidates(
    loss, capacity, is_labelled, reads, monkeypatch
):
    monkeypatch.setattr("querykey.lookup.unit_length._may_read", lambda _: False)  # as on another device
    rows = F.normalize(torch.randn(300, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(300) % 7 if is_labelled else None
    settings = AdapterSettings.from_parameters(
        loss=loss, capacity=capacity, steps=3, batch_size=32, learning_rate=1e-3
    )
    settings = resolve(settings, task="labels" if is_labelled else "unlabelled", items=300, width=16)
    fc = layer_at(principal_components(moments(rows, torch.arange(300)), 16, centred=False), settings)
    plan = plan_of_items(fc, settings, rows, torch.arange(300), labels)
    plan.take(0)
    with Reads() as counted:
        plan.take(1)
    assert dict(counted.found) == reads
