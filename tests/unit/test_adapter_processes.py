"""An adapter that is fitted by several processes is the one that a single process fits."""

import pytest
import torch
from adapter_process_toys import KINDS, every_kind
from process_toys import together

from querykey.processes import ALONE


@pytest.fixture(scope="module")
def alone():
    return every_kind(ALONE)


@pytest.mark.parametrize("count", [2, 4])
def test_many_processes_fit_what_one_fits(count, alone, tmp_path):
    found = together("adapter_process_toys:every_kind", count, tmp_path / "meeting")
    for name, wanted in alone.items():
        for one in found[1:]:
            assert torch.equal(one[name], found[0][name]), name
        torch.testing.assert_close(found[0][name], wanted, rtol=1e-4, atol=1e-6, msg=name)
    assert all(float(alone[f"{kind}/looks"][:, 0].abs().sum()) > 0 for kind in KINDS)
