"""N processes leave what one leaves: loss, gradients, weights and dictionaries of every method and loss."""

import functools

import pytest
import torch
from process_cases import CASES, collapsed, taken
from process_toys import distance, together

from querykey.distributed.process_group import SINGLE_PROCESS

TOLERANCE = {torch.float64: (1e-9, 1e-7), torch.float32: (1e-4, 1e-3)}
"""Of a gradient of the first step, and of the state after three, relative to the largest of a tensor."""


@pytest.fixture(scope="module", params=[2, 4])
def several(request, tmp_path_factory):
    """What each of N processes is left with."""
    return together("process_cases:every_case", request.param, tmp_path_factory.mktemp("processes"))


@functools.cache
def one(name, count):
    return taken(name, SINGLE_PROCESS, count=count)


def of(case, found):
    start = f"{case}: "
    return {key.removeprefix(start): value for key, value in found.items() if key.startswith(start)}


@pytest.mark.parametrize("case", CASES)
def test_several_processes_give_the_results_of_one(case, several):
    found, wanted = of(case, several[0]), one(case, len(several) if CASES[case].alone else 0)
    assert found.keys() == wanted.keys()
    gradient, state = TOLERANCE[CASES[case].dtype]
    for key, value in wanted.items():
        if "sharded" in case and key == "shown":
            continue  # scores of a share of the keys
        most = {"gradient": gradient, "z": 1e-5}.get(key.split()[0], state)
        assert found[key].dtype == value.dtype
        assert distance(found[key], value) <= most, (key, distance(found[key], value))
    assert any(key.startswith("gradient") for key in found)


def test_a_loss_that_is_no_number_on_one_ends_all(several):
    assert all(member["collapsed"] for member in several)
    assert collapsed(SINGLE_PROCESS)


@pytest.mark.parametrize("case", CASES)
def test_all_processes_end_with_the_same_bits(case, several):
    found = [of(case, member) for member in several]
    for other in found[1:]:
        for key, value in found[0].items():
            if "sharded" in case and key == "state model.dictionary.vectors":
                assert len(other[key]) == 0 < len(value)  # whole on the first alone
            elif key != "shown":  # of scores each process computes its own
                assert torch.equal(other[key], value), key
